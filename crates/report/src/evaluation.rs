//! What an eval stage measured, as a table: benchmarks against models.

use crate::read::Measure;

/// A row for each benchmark, a cell for each model.
pub(crate) struct Table<'m> {
    /// The models, in the order they were measured.
    pub models: Vec<String>,
    /// The benchmarks, in theirs.
    pub rows: Vec<Row<'m>>,
}

/// A benchmark.
pub(crate) struct Row<'m> {
    /// Its name with its options.
    pub benchmark: String,
    /// What is measured.
    pub metric: String,
    /// For each model, what it reached.
    pub cells: Vec<Option<&'m Measure>>,
}

impl<'m> Table<'m> {
    /// The table of measurements of one stage.
    pub fn of(measures: &'m [Measure]) -> Table<'m> {
        let mut models: Vec<String> = Vec::new();
        let mut benchmarks: Vec<(&str, &str)> = Vec::new();
        for measure in measures {
            if !models.contains(&measure.model) {
                models.push(measure.model.clone());
            }
            let benchmark = (measure.benchmark.as_str(), measure.metric.as_str());
            if !benchmarks.contains(&benchmark) {
                benchmarks.push(benchmark);
            }
        }
        let row = |(benchmark, metric): (&str, &str)| Row {
            benchmark: benchmark.to_owned(),
            metric: metric.to_owned(),
            cells: models
                .iter()
                .map(|model| measures.iter().find(|m| m.model == *model && m.benchmark == benchmark))
                .collect(),
        };
        let rows = benchmarks.into_iter().map(row).collect();
        Table { models, rows }
    }
}
