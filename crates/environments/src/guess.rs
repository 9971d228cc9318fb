//! A game: the number that the row hides is to be guessed, and every wrong guess is answered with `Higher.` or `Lower.`
//!
//! It plays the rows of `generated:guess`, or any whose column `check` is a number. What counts is the last number of a turn. The
//! verdict is 1 when the number was found within the turns there are, otherwise 0.

use pt_core::catalogue::parse;
use pt_tasks::Check;
use pt_tasks::guess::{Answer, answer};
use pt_verify::Verdict;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::catalogue::{EnvironmentInfo, KIND};
use crate::environment::{Environment, Episode, Outcome, Reaction, Start, Turn};

const NAME: &str = "guess";

/// The catalogue's entry.
pub(crate) const INFO: EnvironmentInfo = EnvironmentInfo {
    name: NAME,
    summary: "a guessing game: wrong guesses are answered with `Higher.` or `Lower.`",
    reads: "`check` with a number, as rows of generated:guess have it",
    options: &[],
    build: |options| Ok(Box::new(parse::<Guess>(KIND, NAME, options)?)),
};

/// The game.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Guess {}

/// The number of a row.
fn secret(row: &Map<String, Value>) -> Result<i64, String> {
    let check = row.get("check").and_then(Value::as_str).ok_or("it has no column `check`")?;
    match serde_json::from_str(check) {
        Ok(Check::Number { value }) => Ok(value),
        _ => Err(format!("its column `check` holds no number to guess: {check}")),
    }
}

impl Environment for Guess {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, row: &Map<String, Value>, _: &[Value]) -> Result<(), String> {
        secret(row).map(|_| ())
    }

    fn begin(&self, start: &Start<'_>) -> Box<dyn Episode + '_> {
        Box::new(Game(secret(start.row)))
    }
}

struct Game(Result<i64, String>);

impl Episode for Game {
    fn react(&mut self, turn: &Turn<'_>) -> Reaction {
        let secret = match &self.0 {
            Ok(secret) => *secret,
            Err(problem) => return Reaction::of(Outcome::Failed(problem.clone())),
        };
        match answer(secret, turn.text) {
            Answer::Say(text) => Reaction::say(text),
            Answer::Found => {
                let n = turn.index + 1;
                Reaction::of(Outcome::End(Some(Verdict::pass(format!("found in {n} turns")))))
            }
        }
    }

    fn end(&mut self, _: &str) -> Option<Verdict> {
        Some(Verdict::fail("the number was not found"))
    }
}

#[cfg(test)]
mod tests {
    use pt_text::tools::Reply;

    use super::*;

    #[test]
    fn guesses_are_answered_until_one_is_right() {
        let environment = crate::build(NAME, &toml::Table::new()).unwrap();
        let row = Map::from_iter([("check".to_owned(), "{\"kind\":\"number\",\"value\":5}".into())]);
        assert_eq!(environment.check(&row, &[]), Ok(()));
        assert!(environment.check(&Map::new(), &[]).unwrap_err().contains("`check`"));
        let mut game = environment.begin(&Start { messages: &[], row: &row, tools: &[], seed: 0 });
        let reply = Reply::default();
        let mut said = |text: &str| {
            let reaction = game.react(&Turn { index: 1, text, reply: &reply, first_call: 0, is_last: false });
            match reaction.outcome {
                Outcome::Continue(messages) => messages[0]["content"].as_str().unwrap().to_owned(),
                Outcome::End(verdict) => verdict.unwrap().reason,
                Outcome::Failed(problem) => problem,
            }
        };
        assert_eq!(said("#### 2"), "Higher.");
        assert_eq!(said("not 5 but 7"), "Lower.");
        assert_eq!(said("hm"), "Say a number.");
        assert_eq!(said("99999999999999999999"), "Say a number.");
        assert_eq!(said("#### 5"), "found in 2 turns");
    }
}
