//! One reply of many: the best by score, the one that most agree with, and both together.
//!
//! ```text
//! best of n          argmax_i s_i
//! majority           argmax_a |{i : a_i = a}|                 (self-consistency)
//! weighted majority  argmax_a Σ_{i : a_i = a} s_i
//! ```
//!
//! with s_i a reply's score and a_i its answer. Sources: Cobbe et al. 2021 (arXiv:2110.14168), section 4.2; Wang et al. 2022
//! (arXiv:2203.11171); Li et al. 2022 (arXiv:2206.02336), section 3, and Math-Shepherd (arXiv:2312.08935), equation 7. A reply without
//! an answer has no vote. Of equals, the earlier reply is taken.

/// The index of the greatest score; replies without one are passed over.
pub fn best(scores: &[Option<f64>]) -> Option<usize> {
    let scored = scores.iter().enumerate().filter_map(|(i, score)| Some((i, (*score)?)));
    scored.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(i, _)| i)
}

/// The index of the first reply with the answer that most have.
pub fn majority<A>(answers: &[Option<A>], same: impl Fn(&A, &A) -> bool) -> Option<usize> {
    weighted_majority(answers, &vec![Some(1.0); answers.len()], same)
}

/// The index of the first reply with the answer whose scores sum to the most. Scores are at least 0; a reply without one has no vote.
pub fn weighted_majority<A>(
    answers: &[Option<A>],
    scores: &[Option<f64>],
    same: impl Fn(&A, &A) -> bool,
) -> Option<usize> {
    // The first reply of each answer, and its votes.
    let mut tally: Vec<(usize, f64)> = Vec::new();
    for (i, (answer, score)) in answers.iter().zip(scores).enumerate() {
        let (Some(answer), Some(score)) = (answer, score) else { continue };
        let known = tally.iter_mut().find(|(first, _)| {
            same(answers[*first].as_ref().expect("those in the tally have answers"), answer)
        });
        match known {
            Some((_, votes)) => *votes += score,
            None => tally.push((i, *score)),
        }
    }
    tally.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_those_of_the_definitions() {
        let scores = [Some(0.2), None, Some(0.9), Some(0.3), Some(0.9)];
        assert_eq!(best(&scores), Some(2));
        assert_eq!(best(&[None]), None);
        let equal = |a: &i32, b: &i32| a == b;
        let answers = [Some(7), Some(7), Some(4), Some(7), None];
        assert_eq!(majority(&answers, equal), Some(0));
        assert_eq!(majority(&[None, Some(4), Some(7)], equal), Some(1));
        assert_eq!(majority::<i32>(&[None], equal), None);
        // 7 has 0.2 and 0.3, 4 has 0.9; what has no answer or no score has no vote.
        assert_eq!(weighted_majority(&answers, &scores, equal), Some(2));
        let many = [Some(0.5), Some(0.5), Some(0.9), None, Some(5.0)];
        assert_eq!(weighted_majority(&answers, &many, equal), Some(0));
    }
}
