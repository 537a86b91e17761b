//! Collectives by way of rank 0 beside those from rank to rank, on loopback.
//!
//! `cargo bench --bench collectives [-- RANKS ROUNDS]` prints, for each collective and size, the median time of a call and the
//! CPU time of all ranks, both ways, over interleaved rounds. The size is that of each rank's tensor, of the whole for a gather.
//! On one machine all ranks share its cores, and rank 0 has no link of its own to fill: what the star costs beyond CPU time, it
//! costs on a network. Four ranks on two cores of a busy machine:
//!
//! ```text
//!                  size   star ms (CPU)      direct ms (CPU)    star / direct
//! all_reduce     1 KiB     0.132 (   0.160)     0.829 (   0.896)    0.16
//! all_reduce    64 KiB     0.287 (   0.312)     1.086 (   1.141)    0.26
//! all_reduce   256 KiB     0.722 (   0.937)     1.657 (   1.875)    0.44
//! all_reduce     1 MiB     9.271 (   4.750)     7.434 (   5.250)    1.25
//! all_reduce     4 MiB    61.904 (  23.000)    40.356 (  22.000)    1.53
//! all_reduce    16 MiB   355.309 ( 118.000)   294.494 ( 124.000)    1.21
//! all_reduce    64 MiB  2789.982 (1170.000)  1161.261 ( 712.000)    2.40
//! all_gather    64 KiB     0.175 (   0.219)     0.695 (   1.031)    0.25
//! all_gather   256 KiB     0.307 (   0.375)     0.874 (   0.937)    0.35
//! all_gather     1 MiB     1.699 (   1.500)     2.004 (   2.500)    0.85
//! all_gather    16 MiB   134.721 (  40.000)   106.537 (  44.000)    1.26
//! all_gather    64 MiB  1056.880 ( 490.000)   519.359 ( 318.000)    2.03
//! broadcast     64 KiB     0.170 (   0.219)     0.782 (   1.250)    0.22
//! broadcast    256 KiB     0.331 (   0.312)     1.391 (   1.500)    0.24
//! broadcast      1 MiB     1.037 (   1.250)     1.505 (   1.500)    0.69
//! broadcast     16 MiB    40.580 (  60.000)    42.181 (  68.000)    0.96
//! broadcast     64 MiB  1080.449 ( 546.000)   660.067 ( 406.000)    1.64
//! ```

use futures::future::join_all;
use graphtool::comm::{self, Comm, GroupOptions, ReduceOp};
use graphtool::tensor::Tensor;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

async fn group(size: usize, direct_from: usize) -> Vec<Arc<dyn Comm>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut endpoints = vec![listener.local_addr().unwrap().to_string()];
    endpoints.extend((1..size).map(|r| format!("rank-{r}:0")));
    let mut listener = Some(listener);
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            let options = GroupOptions { direct_from, ..GroupOptions::new(rank, endpoints.clone()) };
            comm::connect(options, if rank == 0 { listener.take() } else { None })
        })
        .collect();
    join_all(ranks).await.into_iter().map(|c| c.unwrap()).collect()
}

/// CPU time of this process, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // utime and stime, in hundredths.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[derive(Clone, Copy)]
enum Kind {
    AllReduce,
    AllGather,
    Broadcast,
}

/// Seconds of each of `calls` calls, from the first rank's beginning to the last one's end.
async fn run(group: &[Arc<dyn Comm>], kind: Kind, bytes: usize, calls: usize) -> Vec<f64> {
    let rows = if matches!(kind, Kind::AllGather) { bytes / 4 / group.len() } else { bytes / 4 };
    let x: Vec<Tensor> = (0..group.len()).map(|r| Tensor::full([rows], r as f32).unwrap()).collect();
    let mut times = Vec::new();
    for _ in 0..calls {
        let start = Instant::now();
        let all = group.iter().zip(&x).map(|(c, x)| match kind {
            Kind::AllReduce => c.all_reduce("x", x.clone(), ReduceOp::Sum),
            Kind::AllGather => c.all_gather("x", x.clone(), 0),
            Kind::Broadcast => c.broadcast("x", x.clone(), 0),
        });
        join_all(all).await.into_iter().for_each(|r| _ = std::hint::black_box(r.unwrap()));
        times.push(start.elapsed().as_secs_f64());
    }
    times
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn size(bytes: usize) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

fn main() {
    let args: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (ranks, rounds) = (args.first().copied().unwrap_or(4), args.get(1).copied().unwrap_or(5));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let groups = [group(ranks, usize::MAX).await, group(ranks, 1).await];
        println!("{ranks} ranks        size   star ms (CPU)      direct ms (CPU)    star / direct");
        for (name, kind) in [("all_reduce", Kind::AllReduce), ("all_gather", Kind::AllGather), ("broadcast", Kind::Broadcast)] {
            for bytes in [1 << 10, 4 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20] {
                let calls = ((8 << 20) / bytes).clamp(1, 500);
                let (mut times, mut used) = ([Vec::new(), Vec::new()], [0.0; 2]);
                // The first round warms up.
                for round in 0..=rounds {
                    for (i, group) in groups.iter().enumerate() {
                        let before = cpu();
                        let now = run(group, kind, bytes, calls).await;
                        if round > 0 {
                            times[i].push(median(now));
                            used[i] += (cpu() - before) / (calls * rounds) as f64;
                        }
                    }
                }
                let [star, direct] = times.map(|t| median(t) * 1e3);
                let [a, b] = used.map(|u| u * 1e3);
                println!("{name:<10} {:>9}  {star:>8.3} ({a:>8.3})  {direct:>8.3} ({b:>8.3})  {:>6.2}", size(bytes), star / direct);
            }
        }
    });
}
