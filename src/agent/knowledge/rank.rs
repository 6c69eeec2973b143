//! Ranking, the same whatever database found the candidates: BM25 over their stems (Robertson and Zaragoza 2009), the
//! cosine of vectors, and both fused by reciprocal ranks (Cormack, Clarke and Büttcher 2009).

use std::collections::HashMap;
use std::hash::Hash;

use super::words::Asked;

/// BM25's saturation of repeated words and its weight of a passage's length: the usual values.
const K1: f32 = 1.2;
const B: f32 = 0.5;
/// Reciprocal rank fusion's constant, from its paper.
const RRF: f32 = 60.0;
/// A stem that only begins like the word that was asked counts so much.
const ALIKE: f32 = 0.6;
/// A beginning of so many letters is taken for the same word, if it is most of both.
const ALIKE_LETTERS: usize = 4;
/// Stems that may stand in for one word of the question.
const MAX_ALIKE: usize = 8;

/// How often stems occur in one collection of passages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Sorted by stem: passages that hold it.
    stems: Vec<(String, u32)>,
    passages: u32,
    /// Mean number of stems of a passage.
    length: f32,
}

/// A word of the question as this collection has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// Stems that occur, with the weight of each; empty: the collection has nothing like it.
    pub stems: Vec<(String, f32)>,
    /// Passages that hold it, at most.
    pub passages: u32,
    /// Inverse document frequency: what the word tells.
    pub weight: f32,
}

impl Stats {
    /// Of the stems of every passage, separated by spaces.
    pub fn of<'p>(passages: impl IntoIterator<Item = &'p str>) -> Self {
        let mut counts: HashMap<&str, (u32, u32)> = HashMap::new();
        let (mut number, mut length) = (0u32, 0usize);
        for passage in passages {
            number += 1;
            for stem in passage.split(' ').filter(|stem| !stem.is_empty()) {
                length += 1;
                let (count, last) = counts.entry(stem).or_default();
                if *last != number {
                    (*count, *last) = (*count + 1, number);
                }
            }
        }
        let mut stems: Vec<(String, u32)> =
            counts.into_iter().map(|(stem, (count, _))| (stem.to_owned(), count)).collect();
        stems.sort_unstable();
        Self { stems, passages: number, length: length as f32 / number.max(1) as f32 }
    }

    /// Bytes that it takes, roughly.
    pub fn size(&self) -> usize {
        self.stems.iter().map(|(stem, _)| stem.len() + size_of::<(String, u32)>()).sum()
    }

    fn count(&self, stem: &str) -> u32 {
        self.stems.binary_search_by(|(known, _)| known.as_str().cmp(stem)).map_or(0, |at| self.stems[at].1)
    }

    /// The question's words as they occur here.
    pub fn terms(&self, asked: &[Asked]) -> Vec<Term> {
        asked
            .iter()
            .map(|word| {
                let mut stems: Vec<(String, f32)> =
                    word.stems.iter().filter(|stem| self.count(stem) > 0).map(|stem| (stem.clone(), 1.0)).collect();
                if stems.is_empty() {
                    stems = word.stems.iter().flat_map(|stem| self.alike(stem)).take(MAX_ALIKE).collect();
                }
                let passages = stems.iter().map(|(stem, _)| self.count(stem)).sum::<u32>().min(self.passages);
                let (all, with) = (self.passages as f32, passages as f32);
                Term { stems, passages, weight: (1.0 + (all - with + 0.5) / (with + 0.5)).ln() }
            })
            .collect()
    }

    /// Stems that begin like a word that does not occur: another form of it, or one that was heard a little wrong.
    fn alike<'s>(&'s self, stem: &'s str) -> impl Iterator<Item = (String, f32)> + 's {
        let letters: Vec<char> = stem.chars().collect();
        let head: String = letters.iter().take(ALIKE_LETTERS).collect();
        let start = self.stems.partition_point(|(known, _)| known.as_str() < head.as_str());
        let enough = letters.len() >= ALIKE_LETTERS && !letters.iter().any(char::is_ascii_digit);
        self.stems[start..]
            .iter()
            .take_while(move |(known, _)| enough && known.starts_with(&head))
            .filter(move |(known, _)| {
                let common = known.chars().zip(letters.iter().copied()).take_while(|(a, b)| a == b).count();
                4 * common >= 3 * known.chars().count().max(letters.len())
            })
            .map(|(known, _)| (known.clone(), ALIKE))
    }

    /// BM25 of a passage's stems, and how much of the question's weight it holds (0 to 1).
    pub fn score(&self, terms: &[Term], passage: &str) -> (f32, f32) {
        let mut counts: HashMap<&str, u32> = HashMap::new();
        let mut length = 0;
        for stem in passage.split(' ') {
            length += 1;
            *counts.entry(stem).or_default() += 1;
        }
        let norm = K1 * (1.0 - B + B * length as f32 / self.length.max(1.0));
        let (mut score, mut held, mut whole) = (0.0, 0.0, 0.0);
        for term in terms {
            whole += term.weight;
            let count: f32 = term
                .stems
                .iter()
                .map(|(stem, weight)| counts.get(stem.as_str()).map_or(0.0, |n| *n as f32 * weight))
                .sum();
            if count > 0.0 {
                score += term.weight * count * (K1 + 1.0) / (count + norm);
                held += term.weight * count.min(1.0);
            }
        }
        (score, if whole > 0.0 { held / whole } else { 0.0 })
    }
}

/// Several rankings made one, the best first: what several of them place high wins.
pub fn fuse<K: Copy + Eq + Hash + Ord>(rankings: &[Vec<K>]) -> Vec<K> {
    let mut scores: HashMap<K, f32> = HashMap::new();
    for ranking in rankings {
        for (rank, key) in ranking.iter().enumerate() {
            *scores.entry(*key).or_default() += 1.0 / (RRF + rank as f32 + 1.0);
        }
    }
    let mut fused: Vec<(K, f32)> = scores.into_iter().collect();
    fused.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused.into_iter().map(|(key, _)| key).collect()
}

/// Makes a vector of length 1, so that products are cosines. `false`: it has no direction.
pub fn normalise(vector: &mut [f32]) -> bool {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if !length.is_finite() || length <= f32::EPSILON {
        return false;
    }
    for x in vector {
        *x /= length;
    }
    true
}

/// The places of the `limit` vectors nearest to `query`, with their cosines, the nearest first. `vectors` are of the
/// query's length, one after the other, all of length 1.
pub fn nearest(vectors: &[f32], query: &[f32], limit: usize) -> Vec<(usize, f32)> {
    if query.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<(usize, f32)> = vectors.chunks_exact(query.len()).map(|v| dot(v, query)).enumerate().collect();
    if all.len() > limit && limit > 0 {
        all.select_nth_unstable_by(limit - 1, |a, b| b.1.total_cmp(&a.1));
    }
    all.truncate(limit);
    all.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

/// In eight sums, which the compiler turns into vector instructions: one sum would have to keep the order of additions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (eights, tens) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = eights.remainder().iter().zip(tens.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in eights.zip(tens) {
        for at in 0..8 {
            sums[at] += x[at] * y[at];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::knowledge::words::{Tongue, asked, stems};

    fn ranked(passages: &[&str], question: &str) -> Vec<(usize, f32)> {
        let passages: Vec<String> = passages.iter().map(|p| stems(p, Tongue::English).join(" ")).collect();
        let stats = Stats::of(passages.iter().map(String::as_str));
        let terms = stats.terms(&asked(question, Tongue::English));
        let mut scored: Vec<(usize, f32, f32)> = passages
            .iter()
            .enumerate()
            .map(|(at, passage)| {
                let (score, held) = stats.score(&terms, passage);
                (at, score, held)
            })
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        scored.into_iter().map(|(at, _, held)| (at, held)).collect()
    }

    const HOTEL: [&str; 4] = [
        "Breakfast is served from seven to ten in the restaurant.",
        "Parking costs ten euros a night; the garage is open all night.",
        "Dogs are welcome for ten euros a night.",
        "Check-in is from three in the afternoon, check-out until noon.",
    ];

    #[test]
    fn rare_words_decide() {
        assert_eq!(ranked(&HOTEL, "how many euros for a dog per night")[0].0, 2);
        assert_eq!(ranked(&HOTEL, "when is breakfast served")[0], (0, 1.0));
    }

    #[test]
    fn a_word_that_nothing_has_lowers_what_is_held() {
        let (best, held) = ranked(&HOTEL, "breakfast unicorns")[0];
        assert!(best == 0 && held < 0.6, "{held}");
        assert_eq!(ranked(&HOTEL, "xylophone")[0].1, 0.0);
    }

    #[test]
    fn a_word_heard_a_little_wrong_still_finds() {
        assert_eq!(ranked(&HOTEL, "breakfasd")[0].0, 0);
        assert!(ranked(&HOTEL, "breakfasd")[0].1 < 0.7, "less than the word itself");
    }

    #[test]
    fn fusion_favours_what_several_rankings_have() {
        assert_eq!(fuse(&[vec![1, 2, 3], vec![3, 4]]), [3, 1, 2, 4]);
        assert_eq!(fuse::<u8>(&[]), Vec::<u8>::new());
        assert_eq!(fuse(&[vec![7, 8]]), [7, 8]);
    }

    #[test]
    fn the_nearest_vectors_come_first() {
        let mut vectors = vec![1.0, 0.0, 0.9, 0.1, 0.0, 1.0];
        for vector in vectors.chunks_exact_mut(2) {
            assert!(normalise(vector));
        }
        let near = nearest(&vectors, &[1.0, 0.0], 2);
        assert_eq!(near.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 1]);
        assert!(near[0].1 > 0.999);
        assert_eq!(nearest(&vectors, &[], 2), []);
        assert!(!normalise(&mut [0.0, 0.0]) && !normalise(&mut [f32::NAN, 1.0]));
    }
}
