//! Means and deviations of the values that are there.

/// Mean; `None` of nothing.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample deviation (divided by n - 1); 0 of fewer than two.
pub(crate) fn deviation(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

/// Sample variance (divided by n - 1); 0 of fewer than two.
pub(crate) fn variance(values: &[f64]) -> f64 {
    let Some(mean) = mean(values).filter(|_| values.len() > 1) else { return 0.0 };
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64
}

/// Those that are there.
pub(crate) fn present(values: &[Option<f64>]) -> Vec<f64> {
    values.iter().flatten().copied().collect()
}

/// The members of every group, groups in the order of their first member.
pub(crate) fn members(groups: &[usize]) -> Vec<Vec<usize>> {
    let mut place = std::collections::HashMap::new();
    let mut all: Vec<Vec<usize>> = Vec::new();
    for (i, &group) in groups.iter().enumerate() {
        let at = *place.entry(group).or_insert(all.len());
        if at == all.len() {
            all.push(Vec::new());
        }
        all[at].push(i);
    }
    all
}
