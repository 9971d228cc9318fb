//! Counter-based random numbers: every draw is a pure function of (seed, stream name, index).
//!
//! Nothing here has state that must be saved or that depends on how many numbers were drawn
//! before, so sampling of one request does not depend on its neighbours, data order does not
//! depend on the number of workers, and a resumed run draws what the uninterrupted one did.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
//! 1, 2, 3", section 3.3). The key is derived from the seed and the stream's name, the counter
//! is (index, block).

/// A named stream of random numbers under a seed.
///
/// `stream.at(i)` is a generator for index `i`; two streams of different names are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// The stream `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let bytes = hasher.finalize();
        let word = |at: usize| {
            let b = bytes.as_bytes();
            u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
        };
        Stream { key: [word(0), word(4)] }
    }

    /// A generator for index `index` of this stream.
    pub fn at(&self, index: u64) -> Draws {
        Draws { key: self.key, index, block: 0, buffered: [0; 4], left: 0 }
    }

    /// The key of the generator, for kernels that compute many words at once.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// The four words at (`index`, `block`): the raw function, for kernels that need one draw per element.
    pub fn words(&self, index: u64, block: u64) -> [u32; 4] {
        philox4x32([index as u32, (index >> 32) as u32, block as u32, (block >> 32) as u32], self.key)
    }
}

/// Successive draws for one index of a stream.
#[derive(Clone, Debug)]
pub struct Draws {
    key: [u32; 2],
    index: u64,
    block: u64,
    buffered: [u32; 4],
    left: usize,
}

impl Draws {
    /// A uniform 32-bit word.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            self.buffered = Stream { key: self.key }.words(self.index, self.block);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.buffered[3 - self.left]
    }

    /// A uniform 64-bit word.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | (u64::from(self.next_u32()) << 32)
    }

    /// Uniform in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n` without modulo bias.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0) has no possible value");
        let n = n as u64;
        // Lemire 2019: multiply, and reject the few low products that would be over-represented.
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "between({low}, {high}) is empty");
        low + self.below((high - low) as usize + 1) as i64
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Standard normal (Box-Muller, one value per two uniforms).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Rounds of the generator.
pub const ROUNDS: usize = 10;
/// What the first and the third word are multiplied by in each round.
pub const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What is added to the key after each round.
pub const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// The ten-round Philox 4x32 bijection.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn draws_depend_only_on_seed_name_and_index() {
        let a: Vec<u32> = (0..9).scan(Stream::new(7, "data").at(3), |d, _| Some(d.next_u32())).collect();
        let b: Vec<u32> = (0..9).scan(Stream::new(7, "data").at(3), |d, _| Some(d.next_u32())).collect();
        assert_eq!(a, b);
        assert_ne!(a[0], Stream::new(7, "init").at(3).next_u32());
        assert_ne!(a[0], Stream::new(8, "data").at(3).next_u32());
        assert_ne!(a[0], Stream::new(7, "data").at(4).next_u32());
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut draws = Stream::new(1, "moments").at(0);
        let n = 20_000;
        let (mut mean_u, mut mean_n, mut var_n) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            mean_u += draws.uniform() / f64::from(n);
            let z = draws.normal();
            mean_n += z / f64::from(n);
            var_n += z * z / f64::from(n);
        }
        // Five standard errors of each estimate.
        assert!((mean_u - 0.5).abs() < 5.0 * 0.289 / f64::from(n).sqrt());
        assert!(mean_n.abs() < 5.0 / f64::from(n).sqrt());
        assert!((var_n - 1.0).abs() < 5.0 * 1.42 / f64::from(n).sqrt());
    }

    #[test]
    fn below_covers_its_range_and_shuffle_permutes() {
        let mut draws = Stream::new(2, "below").at(0);
        let mut seen = [0usize; 5];
        for _ in 0..500 {
            seen[draws.below(5)] += 1;
        }
        assert!(seen.iter().all(|&count| count > 50), "{seen:?}");
        let mut items: Vec<usize> = (0..20).collect();
        draws.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert_ne!(items, sorted);
    }
}
