//! Names that were probably meant by one that is not there.

/// Up to three of the names there are, the most similar first.
pub(crate) fn near(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let wanted = wanted.to_lowercase();
    let mut near: Vec<(usize, String)> = names
        .into_iter()
        .map(|n| (strsim::levenshtein(&wanted, &n.to_lowercase()), n))
        .filter(|(d, n)| *d <= 1 + wanted.len() / 3 || n.to_lowercase().contains(&wanted))
        .collect();
    near.sort();
    near.into_iter().take(3).map(|(_, n)| n).collect()
}
