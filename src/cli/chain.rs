//! Chains of stores as people write them: `cache:256MiB,pserver://h1:7000,h2:7000`.

use super::size;
#[cfg(feature = "redis")]
use crate::store::RedisUrl;
use std::path::PathBuf;

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The shards, read into memory.
    Memory,
    /// Pservers.
    Pservers(Vec<String>),
    /// A Redis Cluster, or one server.
    #[cfg(feature = "redis")]
    Redis(RedisUrl),
    /// The shards of a deployment, mapped; without a directory, those of the one that is run.
    Shards(Option<PathBuf>),
}

/// What stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// Rows that are asked for often stay here, in so many bytes.
    Cache(u64),
    /// Each id of a lookup is asked for once.
    Dedup,
    /// Default rows where the source is not to be reached.
    Default,
}

impl Wrapper {
    fn name(self) -> &'static str {
        match self {
            Self::Cache(_) => "cache",
            Self::Dedup => "dedup",
            Self::Default => "default",
        }
    }
}

/// A source and its wrappers, the outermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) wrappers: Vec<Wrapper>,
    pub(super) source: Source,
}

/// What there is.
const ACCEPTED: &str = "expected [cache:SIZE,][dedup,][default,]SOURCE, where SOURCE is memory, pserver://HOST:PORT,…, \
     redis[s][+cluster]://[USER:PASSWORD@]HOST:PORT,…/NAME, shards or shards://DIR";

enum Tier {
    Wrapper(Wrapper),
    Source(Source),
}

/// Whether an element begins a tier; others go on with the list of the source before.
fn begins(element: &str) -> bool {
    element.contains("://") || ["dedup", "default", "memory", "shards"].contains(&element) || element.starts_with("cache:")
}

impl Chain {
    /// Reads a chain.
    ///
    /// # Errors
    /// Says what is wrong and what is accepted, without passwords.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut tiers: Vec<String> = Vec::new();
        for element in text.split(',').map(str::trim) {
            match tiers.last_mut() {
                Some(last) if !begins(element) && last.contains("://") => {
                    last.push(',');
                    last.push_str(element);
                }
                _ => tiers.push(element.to_owned()),
            }
        }
        let (mut wrappers, mut source) = (Vec::<Wrapper>::new(), None);
        for text in tiers {
            match (tier(&text)?, &source) {
                (Tier::Source(_), Some(_)) => return Err(format!("a chain of stores has one source, found two; {ACCEPTED}")),
                (Tier::Wrapper(w), Some(_)) => {
                    return Err(format!("the source of a chain of stores stands last, found {} behind it; {ACCEPTED}", w.name()));
                }
                (Tier::Source(s), None) => source = Some(s),
                (Tier::Wrapper(w), None) if wrappers.iter().any(|o| o.name() == w.name()) => {
                    return Err(format!("{} stands twice in a chain of stores; {ACCEPTED}", w.name()));
                }
                (Tier::Wrapper(Wrapper::Default), None) if wrappers.iter().any(|w| matches!(w, Wrapper::Cache(_))) => {
                    return Err("default stands before cache in a chain of stores: a cache keeps no row that is not its id's".into());
                }
                (Tier::Wrapper(w), None) => wrappers.push(w),
            }
        }
        let source = source.ok_or_else(|| format!("a chain of stores ends in a source, found none; {ACCEPTED}"))?;
        Ok(Self { wrappers, source })
    }
}

/// One tier.
fn tier(text: &str) -> Result<Tier, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return match text.split_once(':') {
            Some(("cache", size)) => Ok(Tier::Wrapper(Wrapper::Cache(size::parse(size).map_err(|e| format!("cache: {e}"))?))),
            None if text == "dedup" => Ok(Tier::Wrapper(Wrapper::Dedup)),
            None if text == "default" => Ok(Tier::Wrapper(Wrapper::Default)),
            None if text == "memory" => Ok(Tier::Source(Source::Memory)),
            None if text == "shards" => Ok(Tier::Source(Source::Shards(None))),
            _ => Err(format!("\"{text}\" is no store; {ACCEPTED}")),
        };
    };
    match scheme {
        "pserver" => {
            let endpoints: Vec<String> = rest.split(',').map(str::to_owned).collect();
            match endpoints.iter().find(|e| !e.contains(':')) {
                Some(wrong) => Err(format!("pserver://: \"{wrong}\" is no HOST:PORT")),
                None => Ok(Tier::Source(Source::Pservers(endpoints))),
            }
        }
        "shards" if !rest.is_empty() => Ok(Tier::Source(Source::Shards(Some(rest.into())))),
        "redis" | "redis+cluster" | "rediss" | "rediss+cluster" => redis(scheme, text),
        // What comes before the mark may not be a scheme at all, but hold a password.
        _ => Err(format!("a chain of stores has no such source; {ACCEPTED}")),
    }
}

#[cfg(feature = "redis")]
fn redis(scheme: &str, text: &str) -> Result<Tier, String> {
    RedisUrl::parse(text).map(|url| Tier::Source(Source::Redis(url))).map_err(|e| format!("{scheme}://: {e}"))
}

#[cfg(not(feature = "redis"))]
fn redis(scheme: &str, _: &str) -> Result<Tier, String> {
    Err(format!("{scheme}://: this build has no Redis; one with --features redis has"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_without_a_scheme_goes_on_with_the_list_before_it() {
        let chain = Chain::parse("default,cache:256MiB,dedup,pserver://h1:7000,cache:7001,[::1]:7002");
        // A host may not be called as a tier is.
        assert!(chain.unwrap_err().starts_with("the source of a chain of stores stands last, found cache behind it; expected"));
        let chain = Chain::parse("default,cache:256MiB,dedup,pserver://h1:7000, h2:7001,[::1]:7002").unwrap();
        assert_eq!(chain.wrappers, [Wrapper::Default, Wrapper::Cache(256 << 20), Wrapper::Dedup]);
        assert_eq!(chain.source, Source::Pservers(vec!["h1:7000".into(), "h2:7001".into(), "[::1]:7002".into()]));
        assert_eq!(Chain::parse("memory").unwrap(), Chain { wrappers: vec![], source: Source::Memory });
        assert_eq!(Chain::parse("shards://a,b").unwrap().source, Source::Shards(Some("a,b".into())));
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_build_without_redis_says_so_and_not_the_password() {
        let error = Chain::parse("dedup,rediss+cluster://:secret@h:1,h:2/n").unwrap_err();
        assert_eq!(error, "rediss+cluster://: this build has no Redis; one with --features redis has");
    }

    #[test]
    fn a_wrong_chain_says_what_is_accepted() {
        for (text, why) in [
            ("", "\"\" is no store; expected ["),
            ("cache:1KiB", "a chain of stores ends in a source, found none; expected ["),
            ("memory,shards", "a chain of stores has one source, found two; expected ["),
            ("shards,cache:1", "the source of a chain of stores stands last, found cache behind it; expected ["),
            ("dedup,dedup,shards", "dedup stands twice in a chain of stores; expected ["),
            ("cache:1,default,shards", "default stands before cache in a chain of stores: a cache keeps"),
            ("cache:x,shards", "cache: \"x\" is no size"),
            ("retry,shards", "\"retry\" is no store; expected ["),
            ("http://h:1", "a chain of stores has no such source; expected ["),
            ("pserver://h1:7000,h2", "pserver://: \"h2\" is no HOST:PORT"),
        ] {
            let error = Chain::parse(text).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
