//! Which file is asked for next: few are popular, most are not.

/// Zipf's law with exponent 1: the n-th most popular of the files is asked for 1/n as often as the
/// most popular. Which file has which rank is shuffled, in the same way in all processes.
pub struct Zipf {
    /// Up to which number each rank reaches, ascending.
    cumulative: Vec<f64>,
    file_of_rank: Vec<usize>,
}

impl Zipf {
    /// For `files` files, at least one.
    pub fn new(files: usize) -> Self {
        let mut total = 0.0;
        let cumulative = (1..=files)
            .map(|rank| {
                total += 1.0 / rank as f64;
                total
            })
            .collect();
        let mut file_of_rank: Vec<usize> = (0..files).collect();
        let mut random = Random::new(SHUFFLE_SEED);
        for last in (1..files).rev() {
            file_of_rank.swap(last, (random.unit() * (last + 1) as f64) as usize);
        }
        Zipf {
            cumulative,
            file_of_rank,
        }
    }

    /// The number of a file.
    pub fn next(&self, random: &mut Random) -> usize {
        let total = self.cumulative[self.cumulative.len() - 1];
        let at = random.unit() * total;
        let rank = self.cumulative.partition_point(|&end| end <= at);
        // Rounding may put `at` onto the end of the last rank.
        self.file_of_rank[rank.min(self.file_of_rank.len() - 1)]
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and good enough to choose files with.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// From 0 up to, and not including, 1.
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

const SHUFFLE_SEED: u64 = 1;
