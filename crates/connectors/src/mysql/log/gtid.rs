//! Global transaction ids of MariaDB: `domain-server-sequence`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The id of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gtid {
    pub(super) domain: u32,
    pub(super) server: u32,
    pub(super) sequence: u64,
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl FromStr for Gtid {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "not a transaction id of MariaDB";
        let mut parts = s.trim().split('-');
        let gtid = (|| {
            Some(Gtid {
                domain: parts.next()?.parse().ok()?,
                server: parts.next()?.parse().ok()?,
                sequence: parts.next()?.parse().ok()?,
            })
        })();
        gtid.filter(|_| parts.next().is_none()).ok_or(WRONG)
    }
}

/// The last transaction of every domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Gtids(BTreeMap<u32, Gtid>);

impl Gtids {
    /// This transaction was taken.
    pub(super) fn take(&mut self, gtid: Gtid) {
        self.0.insert(gtid.domain, gtid);
    }
}

impl fmt::Display for Gtids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, gtid) in self.0.values().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{gtid}")?;
        }
        Ok(())
    }
}

impl FromStr for Gtids {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut all = Gtids::default();
        for one in s.split(',').filter(|one| !one.trim().is_empty()) {
            all.take(one.parse()?);
        }
        Ok(all)
    }
}

macro_rules! as_text {
    ($($ty:ty),*) => {$(
        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}
as_text!(Gtid, Gtids);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_read_what_they_write() {
        let list: Gtids = " 1-2-3, 0-1-18446744073709551615".parse().unwrap();
        assert_eq!(list.to_string(), "0-1-18446744073709551615,1-2-3");
        let mut next = list.clone();
        next.take("1-9-4".parse().unwrap());
        assert_eq!(next.to_string(), "0-1-18446744073709551615,1-9-4");
        assert_eq!("".parse::<Gtids>().unwrap(), Gtids::default());
        for bad in ["1", "1-2", "1-2-3-4", "a-1-1", "1-1-"] {
            assert!(bad.parse::<Gtids>().is_err(), "{bad}");
        }
    }
}
