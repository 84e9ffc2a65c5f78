//! What a power cut leaves behind, drawn from one number.

/// A small seeded generator (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly below `count`, which is not 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }
}

/// Which unsynced changes survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Survival {
    /// None.
    None,
    /// All.
    All,
    /// Each with probability 1/2.
    Coin,
    /// Each with probability 15/16.
    Mostly,
    /// Each with probability 1/16.
    Rarely,
    /// In each file only the sectors behind a random point: the end without the beginning.
    Suffix,
    /// The n-th one survives if bit n is set, counted over all files in the order of their paths, as
    /// in [`unsynced_sectors`](super::SimDisk::unsynced_sectors); those past the 64th do not. For
    /// enumerating every outcome of a small state.
    Subset(u64),
}

/// A power cut: one seed decides what survives; single choices may be fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cut {
    seed: u64,
    sectors: Option<Survival>,
    entries: Option<Survival>,
}

impl Cut {
    /// A cut whose every choice, and the bias of the choices, comes from `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self { seed, sectors: None, entries: None }
    }

    /// A cut that loses all that was not synced. What a sync was writing at that moment is still up to
    /// chance.
    pub fn losing_all() -> Self {
        Self::seeded(0).sectors(Survival::None).entries(Survival::None)
    }

    /// A cut that happens to lose nothing.
    pub fn losing_nothing() -> Self {
        Self::seeded(0).sectors(Survival::All).entries(Survival::All)
    }

    /// Fixes which unsynced sectors survive. Unsynced lengths follow: none with
    /// [`Survival::None`], all with [`Survival::All`], each by a coin otherwise.
    pub fn sectors(self, survival: Survival) -> Self {
        Self { sectors: Some(survival), ..self }
    }

    /// Fixes which changes of directory entries survive.
    pub fn entries(self, survival: Survival) -> Self {
        Self { entries: Some(survival), ..self }
    }
}

impl From<u64> for Cut {
    fn from(seed: u64) -> Self {
        Self::seeded(seed)
    }
}

/// When, relative to a disk call, the lights go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CutMoment {
    /// Before the call has any effect.
    Before,
    /// After a random part of its effect: some bytes of a write, some sectors of a sync. A call that
    /// comes in one piece, such as a rename, has it all, as unsynced as ever; nobody hears of it.
    Middle,
}

/// The choices of one cut, in the order in which they are asked for.
pub(super) struct Dice {
    rng: Rng,
    sectors: Survival,
    entries: Survival,
    asked: u64,
    /// In the file at hand: sectors still to come before the surviving suffix.
    doomed: usize,
}

impl Dice {
    pub(super) fn new(cut: Cut) -> Self {
        use Survival::{All, Coin, Mostly, None, Rarely, Suffix};
        let mut rng = Rng::new(cut.seed);
        let sectors = [None, All, Coin, Mostly, Rarely, Suffix][rng.below(6)];
        let entries = [None, All, Coin, Mostly][rng.below(4)];
        let (sectors, entries) = (cut.sectors.unwrap_or(sectors), cut.entries.unwrap_or(entries));
        Self { rng, sectors, entries, asked: 0, doomed: 0 }
    }

    /// To be told how many sectors of the next file will be asked for.
    pub(super) fn begin_file(&mut self, unsynced: usize) {
        if self.sectors == Survival::Suffix {
            self.doomed = self.rng.below(unsynced + 1);
        }
    }

    pub(super) fn sector_survives(&mut self) -> bool {
        self.asked += 1;
        match self.sectors {
            Survival::None => false,
            Survival::All => true,
            Survival::Coin => self.rng.coin(),
            Survival::Mostly => !self.rng.one_in(16),
            Survival::Rarely => self.rng.one_in(16),
            Survival::Subset(bits) => {
                bits.checked_shr((self.asked - 1).min(64) as u32).unwrap_or(0) & 1 == 1
            }
            Survival::Suffix if self.doomed > 0 => {
                self.doomed -= 1;
                false
            }
            Survival::Suffix => true,
        }
    }

    pub(super) fn len_survives(&mut self) -> bool {
        match self.sectors {
            Survival::None => false,
            Survival::All => true,
            _ => self.rng.coin(),
        }
    }

    /// A sector that a sync was writing when the power went: it may be there even where nothing else
    /// survives, for that sync may have come far.
    pub(super) fn landed(&mut self) -> bool {
        self.rng.coin()
    }

    /// How many of a name's `changes` survive; it is always the first ones.
    pub(super) fn changes_kept(&mut self, changes: usize) -> usize {
        match self.entries {
            Survival::None => 0,
            Survival::All => changes,
            Survival::Mostly if !self.rng.one_in(16) => changes,
            Survival::Rarely if !self.rng.one_in(16) => 0,
            _ => self.rng.below(changes + 1),
        }
    }
}
