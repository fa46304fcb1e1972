//! IPv4 subnets: the small arithmetic that address plans need.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A subnet, `10.1.0.0/24`; the address has no bits outside of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    /// The subnet that `address` is in; a prefix over 32 means 32.
    #[must_use]
    pub fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    /// Bits of the prefix.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The lowest address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// The highest address.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | !mask(self.prefix)).into()
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.network & mask(prefix) == other.network & mask(prefix)
    }

    /// Addresses for hosts, in order: all but the lowest and the highest.
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.network.saturating_add(1)..u32::from(self.broadcast())).map(Ipv4Addr::from)
    }

    /// All addresses, in order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.network..=u32::from(self.broadcast())).map(Ipv4Addr::from)
    }

    /// Its parts with `prefix` bits, in order; none when it is smaller than that.
    pub fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let count = if (self.prefix..=32).contains(&prefix) { 1u64 << (prefix - self.prefix) } else { 0 };
        (0..count).filter_map(move |n| {
            let offset = u32::try_from(n << (32 - u32::from(prefix))).ok()?;
            Some(Self { network: self.network | offset, prefix })
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid subnet {text}: it must be IPv4 in CIDR notation, like 10.1.0.0/24");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(bad)?;
        Ok(Self::of(address.parse().map_err(|_| bad())?, prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cut_and_nonsense_is_refused() {
        assert_eq!(subnet("10.1.2.3/16").to_string(), "10.1.0.0/16");
        assert_eq!(subnet("0.0.0.0/0").broadcast(), Ipv4Addr::BROADCAST);
        for text in ["10.0.0.0", "10.0.0.0/33", "fd00::/64", "x/8", ""] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_symmetric() {
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.1.0.0/24", true),
            ("10.1.0.0/24", "10.1.1.0/24", false),
            ("0.0.0.0/0", "10.1.1.0/24", true),
            ("10.1.0.0/32", "10.1.0.0/24", true),
        ] {
            assert_eq!(subnet(a).overlaps(subnet(b)), expected, "{a} {b}");
            assert_eq!(subnet(b).overlaps(subnet(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn hosts_and_parts_stay_inside() {
        assert_eq!(subnet("10.0.0.0/30").hosts().count(), 2);
        assert_eq!(subnet("10.0.0.0/32").hosts().count(), 0);
        assert_eq!(subnet("255.255.255.252/30").hosts().count(), 2);
        let parts: Vec<String> = subnet("10.0.0.0/22").parts(24).map(|p| p.to_string()).collect();
        assert_eq!(parts, ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]);
        assert_eq!(subnet("10.0.0.0/24").parts(16).count(), 0);
    }
}
