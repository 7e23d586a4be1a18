//! Cutting a sole integer key into equal parts by what was seen of it in some places.

/// A stretch of keys and about how many rows it holds.
pub(crate) struct Stratum {
    pub(crate) start: i128,
    pub(crate) end: i128,
    pub(crate) rows: f64,
}

/// The keys that cut the strata into `n` equal parts.
pub(crate) fn quantiles(strata: &[Stratum], n: usize) -> Vec<i128> {
    let total: f64 = strata.iter().map(|s| s.rows).sum();
    let mut bounds = Vec::new();
    let (mut before, mut at) = (0.0, 0);
    for i in 1..n {
        let wanted = total * i as f64 / n as f64;
        while at + 1 < strata.len() && before + strata[at].rows < wanted {
            before += strata[at].rows;
            at += 1;
        }
        let s = &strata[at];
        let share = if s.rows > 0.0 {
            ((wanted - before) / s.rows).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let key = s.start + ((s.end - s.start) as f64 * share) as i128;
        if key > bounds.last().copied().unwrap_or(strata[0].start) {
            bounds.push(key);
        }
    }
    bounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strata_are_cut_where_their_rows_are() {
        let strata: Vec<Stratum> = (0..10)
            .map(|i| Stratum {
                start: i * 100,
                end: (i + 1) * 100,
                rows: if i < 5 { 0.0 } else { 20.0 },
            })
            .collect();
        assert_eq!(quantiles(&strata, 5), [600, 700, 800, 900]);
    }
}
