//! The least recently used go first.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Instant;

/// A bounded map whose entries end.
#[derive(Debug)]
pub(super) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Use number → key: the smallest was used longest ago.
    uses: BTreeMap<u64, K>,
    next: u64,
    max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: u64,
    until: Instant,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    pub(super) fn new(max: usize) -> Self {
        Lru {
            entries: HashMap::new(),
            uses: BTreeMap::new(),
            next: 0,
            max,
        }
    }

    /// The value, if it is still good.
    pub(super) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, now: Instant) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get_mut(key)?;
        if entry.until <= now {
            let used = entry.used;
            self.uses.remove(&used);
            self.entries.remove(key);
            return None;
        }
        if let Some(own) = self.uses.remove(&entry.used) {
            entry.used = self.next;
            self.uses.insert(self.next, own);
            self.next += 1;
        }
        Some(entry.value.clone())
    }

    pub(super) fn put(&mut self, key: K, value: V, until: Instant) {
        if self.max == 0 {
            return;
        }
        if let Some(old) = self.entries.remove(&key) {
            self.uses.remove(&old.used);
        } else if self.entries.len() >= self.max
            && let Some((_, oldest)) = self.uses.pop_first()
        {
            self.entries.remove(&oldest);
        }
        self.uses.insert(self.next, key.clone());
        let entry = Entry {
            value,
            used: self.next,
            until,
        };
        self.entries.insert(key, entry);
        self.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn entries_end() {
        let now = Instant::now();
        let mut lru = Lru::new(2);
        lru.put(1, 'a', now + Duration::from_secs(1));
        assert_eq!(lru.get(&1, now), Some('a'));
        assert_eq!(lru.get(&1, now + Duration::from_secs(1)), None);
        assert!(lru.entries.is_empty() && lru.uses.is_empty());
    }

    proptest! {
        /// Against a list in order of use.
        #[test]
        fn the_least_recently_used_goes_first(max in 0usize..5, steps in prop::collection::vec((any::<bool>(), 0u8..8), 0..60)) {
            let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
            let mut lru = Lru::new(max);
            let mut model: Vec<u8> = Vec::new();
            for (put, key) in steps {
                let known = model.iter().position(|k| *k == key);
                if put {
                    lru.put(key, key, later);
                    known.map(|at| model.remove(at));
                    model.push(key);
                    if model.len() > max {
                        model.remove(0);
                    }
                } else {
                    prop_assert_eq!(lru.get(&key, now), known.map(|_| key));
                    if let Some(at) = known {
                        let key = model.remove(at);
                        model.push(key);
                    }
                }
                prop_assert_eq!(lru.entries.len(), model.len());
                prop_assert_eq!(lru.uses.len(), model.len());
            }
        }
    }
}
