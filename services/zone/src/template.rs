//! How a guest that was made ready beforehand learns what it is: between the monitor and the guest's agent.
//!
//! A template is a guest that has booted with empty slots only. Its agent, told so by [`WORD`] on the kernel's command line,
//! does what needs no spec, marks some pages of its own memory ([`mark`]), and has the driver look at the last slot once more:
//! there the monitor keeps the machine's state, and where those pages are. Into them it writes the [`Orders`] of each guest that
//! goes on from there. No register, port or memory beside the guest's own is needed for it, and no exit.
//!
//! ```text
//!  0        4      12         44                 45
//!  | length | time | seed     | devices in slots | spec.json (length bytes) |
//! ```
//! Numbers are little endian. A spec that does not fit into the pages needs a guest that boots.

/// The word on the kernel's command line; the kernel hands it to the agent as a variable of the environment.
pub const WORD: &str = "kraud_template";
/// Slots of a template: devices of a guest that goes on from it, and spare ones. The last is always spare.
pub const SLOTS: usize = 16;
/// A page, bytes.
pub const PAGE: usize = 4096;
/// How many pages the agent marks.
pub const PAGES: usize = 32;
/// Random bytes for the guest's generator: all guests of a template have the same state in it.
pub const SEED: usize = 32;
/// Bytes before the spec.
pub const HEADER: usize = 4 + 8 + SEED + 1;
/// The longest spec.
pub const MAX_SPEC: usize = PAGES * PAGE - HEADER;
/// Bytes of a mark.
pub const MARK: usize = 64;

/// What stands at the start of the marked page with this number: nothing that is found in a program's file.
#[must_use]
pub fn mark(page: u32) -> [u8; MARK] {
    let mut state = u64::from(page) ^ 0x6b72_6175_6462_6f78;
    std::array::from_fn(|_| {
        // One step of a 64-bit linear congruential generator (Knuth's MMIX constants) a byte.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// What a guest is told when it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    /// The host's time when they were written, nanoseconds since the Unix epoch: the guest's own clock stood still.
    pub now_ns: u64,
    /// For the random number generator.
    pub seed: [u8; SEED],
    /// How many slots, from the first on, are devices now.
    pub devices: u8,
    /// The spec, JSON, at most [`MAX_SPEC`] bytes.
    pub spec: Vec<u8>,
}

impl Orders {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.spec.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.spec.len());
        bytes.extend(length.to_le_bytes());
        bytes.extend(self.now_ns.to_le_bytes());
        bytes.extend(self.seed);
        bytes.push(self.devices);
        bytes.extend(&self.spec);
        bytes
    }

    /// From what stands in the pages; none when they do not hold any.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        let length = u32::from_le_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let now_ns = u64::from_le_bytes(header.get(4..12)?.try_into().ok()?);
        let seed = header.get(12..12 + SEED)?.try_into().ok()?;
        Some(Self { now_ns, seed, devices: *header.last()?, spec: rest.get(..length)?.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_come_out_as_they_went_in() {
        let orders = Orders { now_ns: 1 << 60, seed: [7; SEED], devices: 5, spec: b"{}".to_vec() };
        let mut bytes = orders.encode();
        bytes.resize(PAGES * PAGE, 0);
        assert_eq!(Orders::decode(&bytes), Some(orders));
    }

    #[test]
    fn pages_that_still_have_their_mark_are_no_orders() {
        let mut bytes = mark(0).to_vec();
        bytes.resize(PAGES * PAGE, 0);
        assert_eq!(Orders::decode(&bytes), None);
        assert_ne!(mark(0), mark(1));
    }
}
