//! Python's `random.Random(seed).sample`, so that few-shot examples are those lm-evaluation-harness draws.
//!
//! The generator is MT19937 (Matsumoto and Nishimura 1998, "Mersenne Twister", ACM TOMACS 8:3-30), seeded by an array as
//! Python does; `sample` is that of CPython's `Lib/random.py`.

const N: usize = 624;
const M: usize = 397;

/// Python's generator.
pub(crate) struct PythonRandom {
    state: Vec<u32>,
    index: usize,
}

impl PythonRandom {
    /// `random.Random(seed)` for a seed of one word.
    pub(crate) fn new(seed: u32) -> PythonRandom {
        let mut state = vec![0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        // The key is the one word; its index is always 0.
        let mut i = 1;
        for _ in 0..N {
            let last = state[i - 1];
            state[i] = (state[i] ^ (last ^ (last >> 30)).wrapping_mul(1_664_525)).wrapping_add(seed);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let last = state[i - 1];
            state[i] = (state[i] ^ (last ^ (last >> 30)).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        PythonRandom { state, index: N }
    }

    fn next_u32(&mut self) -> u32 {
        if self.index >= N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`.
    ///
    /// # Panics
    /// If `k > n`: the caller has checked.
    pub(crate) fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        assert!(k <= n, "a sample of {k} out of {n}");
        let mut set_size = 21.0;
        if k > 5 {
            set_size += 4f64.powf(((k * 3) as f64).log(4.0).ceil());
        }
        if n as f64 <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|i| {
                    let at = self.below(n - i);
                    let chosen = pool[at];
                    pool[at] = pool[n - i - 1];
                    chosen
                })
                .collect();
        }
        let mut selected = Vec::with_capacity(k);
        while selected.len() < k {
            let at = self.below(n);
            if !selected.contains(&at) {
                selected.push(at);
            }
        }
        selected
    }
}

#[cfg(test)]
mod tests {
    use super::PythonRandom;

    #[test]
    fn samples_are_pythons() {
        // python3 -c "import random; r = random.Random(1234); print([r.sample(range(n), k)
        // for n, k in [(7473, 5), (7473, 5), (20, 5), (30, 8)]])"
        let mut random = PythonRandom::new(1234);
        assert_eq!(random.sample(7473, 5), SAMPLES[0]);
        assert_eq!(random.sample(7473, 5), SAMPLES[1]);
        assert_eq!(random.sample(20, 5), SAMPLES[2]);
        assert_eq!(random.sample(30, 8), SAMPLES[3]);
    }

    const SAMPLES: [&[usize]; 4] = [
        &[6374, 3610, 957, 61, 742],
        &[7462, 6610, 4769, 286, 5501],
        &[2, 3, 11, 7, 0],
        &[0, 25, 29, 11, 20, 19, 15, 24],
    ];
}
