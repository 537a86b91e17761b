//! Which servers hold which shards. Servers and workers compute the same answer from the same manifest; nobody else decides.

/// Shards shared out among servers, each on some of them.
///
/// The shards with the same first server are its *group*, numbered as that server; group `g` is held by the servers
/// `g, g + 1, …` (modulo their number), as many as there are replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    servers: usize,
    replicas: usize,
    group_of: Vec<usize>,
}

impl Placement {
    /// Shares out shards of these sizes: balanced by bytes, the largest shard first onto the emptiest server, ties by
    /// number. More replicas than servers are as many as servers.
    pub fn new(shard_bytes: &[u64], servers: usize, replicas: u32) -> Self {
        let servers = servers.max(1);
        let mut order: Vec<usize> = (0..shard_bytes.len()).collect();
        order.sort_by_key(|&s| (std::cmp::Reverse(shard_bytes[s]), s));
        let mut load = vec![(0u64, 0usize); servers];
        let mut group_of = vec![0; shard_bytes.len()];
        for s in order {
            let server = (0..servers).min_by_key(|&i| (load[i], i)).unwrap_or(0);
            load[server].0 = load[server].0.saturating_add(shard_bytes[s]);
            load[server].1 += 1;
            group_of[s] = server;
        }
        Self { servers, replicas: (replicas as usize).clamp(1, servers), group_of }
    }

    /// Number of servers, and of groups.
    pub fn servers(&self) -> usize {
        self.servers
    }

    /// The group of a shard.
    pub fn group(&self, shard: u32) -> usize {
        self.group_of.get(shard as usize).copied().unwrap_or(0)
    }

    /// The servers that hold a group, its first server first.
    pub fn holders(&self, group: usize) -> impl Iterator<Item = usize> {
        (0..self.replicas).map(move |r| (group + r) % self.servers)
    }

    /// Whether a server holds a group.
    pub fn holds(&self, server: usize, group: usize) -> bool {
        self.holders(group).any(|s| s == server)
    }

    /// The shards of a group, ascending.
    pub fn shards(&self, group: usize) -> impl Iterator<Item = u32> {
        self.group_of.iter().enumerate().filter(move |(_, g)| **g == group).map(|(s, _)| s as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(bytes: &[u64], servers: usize) -> Vec<usize> {
        let p = Placement::new(bytes, servers, 1);
        (0..bytes.len() as u32).map(|s| p.group(s)).collect()
    }

    #[test]
    fn shards_go_to_the_emptiest_server() {
        assert_eq!(groups(&[10, 10, 10, 10], 2), [0, 1, 0, 1]);
        assert_eq!(groups(&[100, 1, 1, 1], 2), [0, 1, 1, 1]);
        assert_eq!(groups(&[0, 0, 0], 3), [0, 1, 2]);
    }

    #[test]
    fn each_shard_is_on_as_many_servers_as_there_are_replicas() {
        for servers in 1..6 {
            for replicas in 1..8u32 {
                let p = Placement::new(&[5; 11], servers, replicas);
                let expected = (replicas as usize).min(servers);
                for shard in 0..11 {
                    let on: Vec<usize> = (0..servers).filter(|&s| p.holds(s, p.group(shard))).collect();
                    assert_eq!(on.len(), expected, "shard {shard} of {servers} servers, {replicas} replicas");
                }
                // Whichever server is gone, with two replicas each shard is still somewhere.
                let held = |server| (0..11).filter(|&s| p.holds(server, p.group(s))).count();
                assert_eq!((0..servers).map(held).sum::<usize>(), 11 * expected);
            }
        }
    }
}
