//! Names that were perhaps meant.

/// The steps (letters put in, taken out or changed) from one text to another.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let here = (diagonal + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row[b.len()]
}

/// `; near it: …` with up to three of the names that a name is near to, or nothing.
pub fn near<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let folded = name.to_lowercase();
    let rank = |n: &str| {
        let other = n.to_lowercase();
        let part = folded.len() > 2 && (other.contains(&folded) || folded.contains(&other) && other.len() > 2);
        let steps = distance(&folded, &other);
        (steps <= 1 + folded.chars().count() / 3 || part).then_some(steps)
    };
    let mut found: Vec<_> = names.into_iter().filter(|n| !n.is_empty()).filter_map(|n| Some((rank(n)?, n))).collect();
    found.sort_unstable();
    found.dedup();
    let found: Vec<&str> = found.into_iter().take(3).map(|f| f.1).collect();
    if found.is_empty() { String::new() } else { format!("; near it: {}", found.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn a_slip_and_a_part_are_found() {
        let names = ["Gather", "GatherND", "Relu", "dead-code"];
        assert_eq!(near("gahter", names), "; near it: Gather");
        assert_eq!(near("gathernd", names), "; near it: GatherND, Gather");
        assert_eq!(near("Unknown", names), "");
    }
}
