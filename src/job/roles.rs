//! Who this process is in a job: from flags, then PaddlePaddle's environment, then torchrun's, Open MPI's, PMI's, Slurm's or
//! that of Kubernetes' Jobs, then alone.

use super::endpoints::{Network, split};
use std::collections::BTreeMap;

/// The environment, as the command line read it.
pub type Env = BTreeMap<String, String>;

/// What the flags say; an absent one is left to the environment.
#[derive(Debug, Clone, Default)]
pub struct RoleFlags {
    /// `local`, `worker` or `pserver`.
    pub role: Option<String>,
    /// Endpoints of the pservers.
    pub servers: Vec<String>,
    /// Endpoints of the workers.
    pub workers: Vec<String>,
    /// This worker's rank.
    pub rank: Option<usize>,
    /// This pserver's place in the list.
    pub index: Option<usize>,
    /// Address to bind.
    pub host: Option<String>,
    /// Port to bind; 0 takes a free one.
    pub port: Option<u16>,
}

/// A role, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// One process does everything.
    Local,
    /// Reads a part of the samples and asks pservers for rows.
    Worker {
        /// Its rank.
        rank: usize,
        /// Endpoints of all workers, in order; all connect to the first, and to each other where the graph has collectives.
        workers: Vec<String>,
        /// Endpoints of the pservers, in order.
        servers: Vec<String>,
        /// What it binds: rank 0 always, others where the graph has collectives.
        bind: String,
    },
    /// Serves shards.
    Pserver {
        /// Which of the servers.
        index: usize,
        /// How many there are.
        servers: usize,
        /// Address and port to bind.
        bind: String,
        /// Endpoints of the other processes of the job, as far as they are known.
        peers: Vec<String>,
    },
}

fn list(text: &str) -> Vec<String> {
    text.split([',', ';']).map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

fn number<T: std::str::FromStr>(env: &Env, name: &str) -> Result<Option<T>, String> {
    match env.get(name).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(v) => v.parse().map(Some).map_err(|_| format!("{name}={v} is no number")),
    }
}

/// The role, and where it came from.
///
/// # Errors
/// Flags or variables that make no sense together, named.
pub fn resolve(flags: &RoleFlags, env: &Env, net: &dyn Network) -> Result<(Role, String), String> {
    let from_env = |name: &str| env.get(name).map(|v| list(v)).unwrap_or_default();
    let pick = |flag: &[String], name: &str| if flag.is_empty() { from_env(name) } else { flag.to_vec() };
    let servers = pick(&flags.servers, "PADDLE_PSERVERS_IP_PORT_LIST");
    let (role, source) = match (&flags.role, env.get("TRAINING_ROLE").map(String::as_str)) {
        (Some(r), _) => (r.as_str(), "--role"),
        (None, Some("TRAINER")) => ("worker", "TRAINING_ROLE"),
        (None, Some("PSERVER")) => ("pserver", "TRAINING_ROLE"),
        (None, Some(other)) => return Err(format!("TRAINING_ROLE={other}: expected TRAINER or PSERVER")),
        (None, None) if !servers.is_empty() => {
            ("worker", if flags.servers.is_empty() { "PADDLE_PSERVERS_IP_PORT_LIST" } else { "--servers" })
        }
        (None, None) => ("local", "default"),
    };
    let role = match role {
        "local" => Role::Local,
        "worker" => worker(flags, env, servers, net)?,
        "pserver" => pserver(flags, env, &servers, net)?,
        other => return Err(format!("--role {other}: expected local, worker or pserver")),
    };
    Ok((role, source.to_owned()))
}

/// The endpoint that the environment gives to this process.
fn own_endpoint(env: &Env) -> Option<String> {
    let parts = || Some(format!("{}:{}", env.get("POD_IP")?, env.get("PADDLE_PORT")?));
    parts().or_else(|| env.get("PADDLE_CURRENT_ENDPOINT").cloned())
}

/// Which endpoint of a list is this process's: by its text, by the address that it stands for, by the name of this machine.
fn place(list: &[String], env: &Env, net: &dyn Network) -> Option<usize> {
    let own = own_endpoint(env);
    if let Some(i) = own.as_ref().and_then(|own| list.iter().position(|e| e == own)) {
        return Some(i);
    }
    let only = |test: &dyn Fn(&str, u16) -> bool| {
        let mut found = list.iter().enumerate().filter(|(_, e)| split(e).is_ok_and(|(host, port)| test(host, port))).map(|(i, _)| i);
        found.next().filter(|_| found.next().is_none())
    };
    let by_address = match own.as_deref().map(split) {
        Some(Ok((host, port))) => {
            let mine = net.resolve(host);
            only(&|h, p| p == port && net.resolve(h).iter().any(|ip| mine.contains(ip)))
        }
        _ => only(&|h, _| net.resolve(h).iter().any(|ip| !ip.is_loopback() && net.is_local(*ip))),
    };
    let name = net.hostname();
    let by_name = || only(&|h, _| h == name || h.strip_prefix(&name).is_some_and(|rest| !name.is_empty() && rest.starts_with('.')));
    // The pods of a StatefulSet are numbered: worker-3.
    let by_number = || name.split('.').next()?.rsplit_once('-')?.1.parse().ok().filter(|&n: &usize| n < list.len());
    by_address.or_else(by_name).or_else(by_number)
}

/// The variables that are read.
const KNOWN: [&str; 21] = [
    "JOB_COMPLETION_INDEX",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PADDLE_CURRENT_ENDPOINT",
    "PADDLE_PORT",
    "PADDLE_PSERVERS_IP_PORT_LIST",
    "PADDLE_PSERVER_ID",
    "PADDLE_TRAINERS_NUM",
    "PADDLE_TRAINER_ENDPOINTS",
    "PADDLE_TRAINER_ID",
    "PMIX_RANK",
    "PMI_RANK",
    "PMI_SIZE",
    "POD_IP",
    "RANK",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "TRAINING_ROLE",
    "WORLD_SIZE",
];

/// Variables that are not read but look like one that is, each with that.
pub fn near_misses(env: &Env) -> Vec<(String, &'static str)> {
    let near = |name: &str| KNOWN.into_iter().find(|k| k.len() >= 8 && distance(name, k) <= 2);
    let unknown = env.keys().filter(|name| name.len() >= 8 && !KNOWN.contains(&name.as_str()));
    unknown.filter_map(|name| Some((name.clone(), near(name)?))).collect()
}

/// Letters to insert, delete or replace to make one name of the other, in whatever case.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_ascii_uppercase(), b.to_ascii_uppercase());
    if a.len().abs_diff(b.len()) > 2 {
        return 3;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// Rank and number of workers in the variables of those who start processes. Open MPI stands before Slurm, in whose jobs `mpirun`
/// is used too, where each process has the number of the one that started it.
const RANKS: [(&str, &str); 4] =
    [("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")];

/// This worker's rank and the number of workers, as far as the environment says.
fn ranks(env: &Env) -> Result<(Option<usize>, Option<usize>), String> {
    let set = |name: &str| env.get(name).is_some_and(|v| !v.is_empty());
    let (rank, size) = RANKS.into_iter().find(|(rank, size)| set(rank) && set(size)).unwrap_or(RANKS[0]);
    let or = |paddle: &str, other: &str| Ok::<_, String>(number(env, paddle)?.or(number(env, other)?));
    Ok((or("PADDLE_TRAINER_ID", rank)?, or("PADDLE_TRAINERS_NUM", size)?))
}

fn worker(flags: &RoleFlags, env: &Env, servers: Vec<String>, net: &dyn Network) -> Result<Role, String> {
    let mut workers = if flags.workers.is_empty() {
        env.get("PADDLE_TRAINER_ENDPOINTS").map(|v| list(v)).unwrap_or_default()
    } else {
        flags.workers.clone()
    };
    let (rank, size) = ranks(env)?;
    if workers.is_empty() && size.is_some_and(|n| n > 1) {
        let (Some(addr), Some(port)) = (env.get("MASTER_ADDR"), env.get("MASTER_PORT")) else {
            return Err("several workers need their endpoints: --workers, PADDLE_TRAINER_ENDPOINTS, or MASTER_ADDR and MASTER_PORT".into());
        };
        workers = vec![format!("{addr}:{port}")];
    }
    // Rank 0's endpoint is enough: the others connect to it.
    if let (1, Some(n), None) = (workers.len(), size, flags.rank) {
        workers = vec![workers.remove(0); n.max(1)];
    }
    if let (Some(n), false) = (size, workers.is_empty())
        && n != workers.len()
        && flags.workers.is_empty()
    {
        return Err(format!("{n} workers by their number, {} by their endpoints", workers.len()));
    }
    // An Indexed Job tells each pod which it is; workers who know of no others are each their own job.
    let completion = if workers.len() > 1 { number(env, "JOB_COMPLETION_INDEX")? } else { None };
    let rank = flags.rank.or(rank).or(completion).or_else(|| place(&workers, env, net));
    if workers.len() <= 1 {
        workers = workers.into_iter().take(1).collect();
        if workers.is_empty() {
            workers.push("127.0.0.1:0".into());
        }
    }
    let Some(rank) = rank.or((workers.len() == 1).then_some(0)) else {
        return Err(format!(
            "which of the {} workers is this? give --rank, or set PADDLE_TRAINER_ID or RANK, or start it by mpirun or srun",
            workers.len()
        ));
    };
    if rank >= workers.len() {
        return Err(format!("rank {rank} of {} workers", workers.len()));
    }
    let own = split(&workers[rank])?;
    let host = flags.host.as_deref().or(env.get("POD_IP").map(String::as_str)).unwrap_or(own.0);
    let bind = format!("{host}:{}", flags.port.unwrap_or(own.1));
    Ok(Role::Worker { rank, workers, servers, bind })
}

fn pserver(flags: &RoleFlags, env: &Env, servers: &[String], net: &dyn Network) -> Result<Role, String> {
    let index = match flags.index {
        Some(i) => Some(i),
        None => number(env, "PADDLE_PSERVER_ID")?.or_else(|| place(servers, env, net)),
    };
    let count = servers.len().max(1);
    let Some(index) = index.or((count == 1).then_some(0)) else {
        return Err(format!("which of the {count} pservers is this? give --index, or set POD_IP and PADDLE_PORT"));
    };
    if index >= count {
        return Err(format!("pserver {index} of {count}"));
    }
    let listed = servers.get(index).and_then(|s| s.rsplit_once(':'));
    let host = flags.host.clone().or_else(|| env.get("POD_IP").cloned()).or_else(|| listed.map(|l| l.0.to_owned()));
    let port = match flags.port {
        Some(p) => Some(p),
        None => match number(env, "PADDLE_PORT")? {
            Some(p) => Some(p),
            None => listed.and_then(|l| l.1.parse().ok()),
        },
    };
    let bind = format!("{}:{}", host.unwrap_or_else(|| "127.0.0.1".into()), port.unwrap_or(0));
    let workers = if flags.workers.is_empty() {
        env.get("PADDLE_TRAINER_ENDPOINTS").map(|v| list(v)).unwrap_or_default()
    } else {
        flags.workers.clone()
    };
    let others = servers.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, s)| s.clone());
    Ok(Role::Pserver { index, servers: count, bind, peers: others.chain(workers).collect() })
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::tests::Fake;
    use super::*;

    fn resolve(flags: &RoleFlags, env: &Env) -> Result<(Role, String), String> {
        super::resolve(flags, env, &Fake("nobody"))
    }

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn paddles_variables_are_read_as_they_are() {
        let shared = [("PADDLE_PSERVERS_IP_PORT_LIST", "127.0.0.1:7001,127.0.0.1:7002"), ("PADDLE_TRAINERS_NUM", "2")];
        let mut worker = env(&shared);
        worker.extend(env(&[
            ("TRAINING_ROLE", "TRAINER"),
            ("PADDLE_TRAINER_ID", "1"),
            ("PADDLE_TRAINER_ENDPOINTS", "127.0.0.1:8001,127.0.0.1:8002"),
        ]));
        let (role, source) = resolve(&RoleFlags::default(), &worker).unwrap();
        let endpoints = |list: [&str; 2]| list.map(str::to_owned).to_vec();
        let servers = endpoints(["127.0.0.1:7001", "127.0.0.1:7002"]);
        let workers = endpoints(["127.0.0.1:8001", "127.0.0.1:8002"]);
        assert_eq!(role, Role::Worker { rank: 1, workers, servers, bind: "127.0.0.1:8002".into() });
        assert_eq!(source, "TRAINING_ROLE");
        let mut server = env(&shared);
        server.extend(env(&[("TRAINING_ROLE", "PSERVER"), ("POD_IP", "127.0.0.1"), ("PADDLE_PORT", "7002")]));
        assert_eq!(
            resolve(&RoleFlags::default(), &server).unwrap().0,
            Role::Pserver { index: 1, servers: 2, bind: "127.0.0.1:7002".into(), peers: vec!["127.0.0.1:7001".into()] }
        );
    }

    #[test]
    fn torchruns_variables_name_rank_zero_alone() {
        let env = env(&[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500")]);
        let flags = RoleFlags { role: Some("worker".into()), servers: vec!["h:1".into()], ..RoleFlags::default() };
        let Role::Worker { rank, workers, .. } = resolve(&flags, &env).unwrap().0 else { panic!("a worker") };
        assert_eq!((rank, workers[0].as_str(), workers.len()), (1, "10.0.0.1:29500", 2));
    }

    #[test]
    fn schedulers_say_the_rank_and_the_number_of_workers() {
        let flags = RoleFlags {
            role: Some("worker".into()),
            servers: vec!["h:1".into()],
            workers: vec!["10.0.0.1:29500".into()],
            ..RoleFlags::default()
        };
        let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")];
        for (pairs, expected) in [
            (vec![("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")], (2, 4)),
            (vec![("PMI_RANK", "1"), ("PMI_SIZE", "2")], (1, 2)),
            (slurm.to_vec(), (0, 3)),
            // `mpirun` in a job of Slurm.
            ([slurm.as_slice(), &[("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")]].concat(), (1, 2)),
            // PaddlePaddle's own variables come first, one by one.
            ([slurm.as_slice(), &[("PADDLE_TRAINER_ID", "1")]].concat(), (1, 3)),
            (vec![], (0, 1)),
        ] {
            let Role::Worker { rank, workers, .. } = resolve(&flags, &env(&pairs)).unwrap().0 else { panic!("a worker") };
            assert_eq!((rank, workers.len()), expected, "{pairs:?}");
            assert!(workers.iter().all(|w| w == "10.0.0.1:29500"));
        }
        let error = resolve(&flags, &env(&[("SLURM_PROCID", "x"), ("SLURM_NTASKS", "3")])).unwrap_err();
        assert_eq!(error, "SLURM_PROCID=x is no number");
        // A run that asks for no role is local, in a job of whatever scheduler.
        assert_eq!(resolve(&RoleFlags::default(), &env(&slurm)).unwrap().0, Role::Local);
    }

    #[test]
    fn a_pod_of_an_indexed_job_is_told_its_rank_where_there_are_others() {
        let several = RoleFlags {
            role: Some("worker".into()),
            servers: vec!["h:1".into()],
            workers: ["w-0.w:8", "w-1.w:8", "w-2.w:8"].map(str::to_owned).to_vec(),
            ..RoleFlags::default()
        };
        let rank = |flags: &RoleFlags, pairs: &[(&str, &str)]| -> Result<_, String> {
            let Role::Worker { rank, bind, .. } = resolve(flags, &env(pairs))?.0 else { panic!("a worker") };
            Ok((rank, bind))
        };
        let pod = [("JOB_COMPLETION_INDEX", "2"), ("POD_IP", "10.0.0.9")];
        assert_eq!(rank(&several, &pod), Ok((2, "10.0.0.9:8".into())));
        let paddle = [&pod[..], &[("PADDLE_TRAINER_ID", "1")]].concat();
        assert_eq!(rank(&several, &paddle), Ok((1, "10.0.0.9:8".into())));
        assert_eq!(rank(&several, &[("JOB_COMPLETION_INDEX", "3")]).unwrap_err(), "rank 3 of 3 workers");
        assert_eq!(rank(&several, &[("JOB_COMPLETION_INDEX", "x")]).unwrap_err(), "JOB_COMPLETION_INDEX=x is no number");
        let alone = RoleFlags { workers: Vec::new(), ..several };
        assert_eq!(rank(&alone, &[("JOB_COMPLETION_INDEX", "2")]), Ok((0, "127.0.0.1:0".into())));
    }

    #[test]
    fn flags_come_first_and_without_any_the_run_is_local() {
        assert_eq!(resolve(&RoleFlags::default(), &Env::new()).unwrap().0, Role::Local);
        let flags = RoleFlags { role: Some("local".into()), ..RoleFlags::default() };
        assert_eq!(resolve(&flags, &env(&[("TRAINING_ROLE", "PSERVER")])).unwrap().0, Role::Local);
    }

    #[test]
    fn a_process_finds_its_place_by_text_address_name_or_number() {
        let find = |list: &str, pairs: &[(&str, &str)], name| {
            place(&list.split(',').map(str::to_owned).collect::<Vec<_>>(), &env(pairs), &Fake(name))
        };
        assert_eq!(find("x:1,x:2", &[("POD_IP", "x"), ("PADDLE_PORT", "2")], "n"), Some(1));
        assert_eq!(find("x:1,x:2", &[("PADDLE_CURRENT_ENDPOINT", "x:2")], "n"), Some(1));
        // The list has a name, the environment an address.
        assert_eq!(find("b:1,a:1", &[("POD_IP", "10.0.0.1"), ("PADDLE_PORT", "1")], "n"), Some(1));
        assert_eq!(find("b:1,a:1", &[], "n"), Some(1));
        assert_eq!(find("a:1,a:2", &[], "n"), None, "two are here");
        assert_eq!(find("ps-0.svc:1,ps-9.svc:1", &[], "ps-9"), Some(1));
        assert_eq!(find("x:1,y:1,z:1,w:1", &[], "pod-3"), Some(3));
        assert_eq!(find("x:1,y:1", &[], "pod-3"), None);
    }

    #[test]
    fn variables_that_are_nearly_right_are_noticed() {
        let found = near_misses(&env(&[
            ("PADDLE_TRAINER_NUM", "2"),
            ("PADDLE_PSERVER_IP_PORT_LIST", "x"),
            ("PADDLE_TRAINERS_NUM", "2"),
            ("training_role", "TRAINER"),
            ("LOCAL_RANK", "0"),
            ("BANK", "0"),
            ("PATH", "/bin"),
        ]));
        let found: Vec<_> = found.iter().map(|(a, b)| (a.as_str(), *b)).collect();
        let expected = [
            ("PADDLE_PSERVER_IP_PORT_LIST", "PADDLE_PSERVERS_IP_PORT_LIST"),
            ("PADDLE_TRAINER_NUM", "PADDLE_TRAINERS_NUM"),
            ("training_role", "TRAINING_ROLE"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let flags = RoleFlags { role: Some("worker".into()), workers: vec!["x:1".into(), "y:1".into()], ..RoleFlags::default() };
        let error = resolve(&flags, &Env::new()).unwrap_err();
        assert_eq!(error, "which of the 2 workers is this? give --rank, or set PADDLE_TRAINER_ID or RANK, or start it by mpirun or srun");
        assert_eq!(
            resolve(&RoleFlags::default(), &env(&[("TRAINING_ROLE", "X")])).unwrap_err(),
            "TRAINING_ROLE=X: expected TRAINER or PSERVER"
        );
    }
}
