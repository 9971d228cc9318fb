//! "Did you mean ...": the nearest of a list of names.

/// The candidate nearest to `name`, if one is near enough to be a plausible typo.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A sentence that ends an "unknown name" error: the nearest name if any, then all of them.
pub fn hint(name: &str, candidates: &[&str]) -> String {
    let all = candidates.join(", ");
    match nearest(name, candidates.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? known: {all}"),
        None => format!("known: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_their_name_and_strangers_do_not() {
        let names = ["learning_rate", "warmup_steps", "seed"];
        assert_eq!(nearest("learnin_rate", names), Some("learning_rate"));
        assert_eq!(nearest("sede", names), Some("seed"));
        assert_eq!(nearest("zebra_crossing", names), None);
    }
}
