//! Stages that were planned when their turn came: the run's plan names them among `others`, and their own plan lies in their folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::RunError;
use crate::folder::{PLAN_FILE, STAGES_DIR, label_of};

/// Puts the stages that a run planned late among the `stages` of its plan, in order; `others` stay as they are. Gives what could not
/// be read, which is then missing.
pub fn join_late_stages(plan: &mut Value, run: &Path) -> Vec<RunError> {
    let others = plan["others"].as_array().cloned().unwrap_or_default();
    let Some(stages) = plan.get_mut("stages").and_then(Value::as_array_mut) else { return Vec::new() };
    let mut problems = Vec::new();
    for other in &others {
        let (Some(number), Some(name)) = (other["number"].as_u64(), other["name"].as_str()) else { continue };
        let path = run.join(STAGES_DIR).join(label_of(number, name)).join(PLAN_FILE);
        let Ok(text) = fs::read(&path) else { continue };
        let own = serde_json::from_slice::<Value>(&text).map_err(|error| error.to_string());
        match own.map(|plan| plan["stages"].as_array().cloned()) {
            Ok(Some(own)) => stages.extend(own),
            Ok(None) => problems.push(RunError::BadJson { path, problem: "it has no `stages`".to_owned() }),
            Err(problem) => problems.push(RunError::BadJson { path, problem }),
        }
    }
    stages.sort_by_key(|stage| stage["number"].as_u64());
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn late_stages_stand_in_their_place_and_damaged_plans_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let check = |own: Option<&str>, expected: &[u64], problem: Option<&str>| {
            let stage = dir.path().join("stages/02-sft");
            fs::create_dir_all(&stage).unwrap();
            let _ = fs::remove_file(stage.join("plan.json"));
            if let Some(own) = own {
                fs::write(stage.join("plan.json"), own).unwrap();
            }
            let mut plan = json!({
                "stages": [{"number": 1}, {"number": 4}],
                "others": [{"number": 2, "name": "sft"}, {"number": 3, "name": "eval"}],
            });
            let problems = join_late_stages(&mut plan, dir.path());
            let numbers: Vec<u64> = plan["stages"]
                .as_array()
                .unwrap()
                .iter()
                .map(|stage| stage["number"].as_u64().unwrap())
                .collect();
            assert_eq!(numbers, expected, "{own:?}");
            assert_eq!(plan["others"].as_array().unwrap().len(), 2);
            let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
            assert_eq!(said.len(), usize::from(problem.is_some()), "{said:?}");
            let names = |text: &str| said[0].contains("02-sft") && said[0].contains(text);
            assert!(problem.is_none_or(names), "{said:?}");
        };
        check(None, &[1, 4], None);
        check(Some(r#"{"stages": [{"number": 2}]}"#), &[1, 2, 4], None);
        check(Some("{}"), &[1, 4], Some("no `stages`"));
        check(Some("{\"stages\": ["), &[1, 4], Some("EOF"));
        assert!(join_late_stages(&mut Value::Null, dir.path()).is_empty());
    }
}
