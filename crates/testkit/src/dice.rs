//! Numbers that a seed determines, so that a failed round can be repeated.

/// Numbers from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of this test run: what `SYNCTOOL_TEST_SEED` says.
    pub fn seed() -> u64 {
        let said = std::env::var("SYNCTOOL_TEST_SEED").ok();
        said.and_then(|seed| seed.parse().ok()).unwrap_or(20_260_101)
    }

    /// The next one, from 0 to below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}
