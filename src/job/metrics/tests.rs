//! Hand-worked figures, and the promise that the number of workers does not matter.

use super::*;

fn gather(samples: &[(f64, f64)]) -> Metrics {
    let mut m = Metrics::default();
    samples.iter().for_each(|&(label, score)| m.add(label, score));
    m
}

fn auc(workers: &[&[(f64, f64)]]) -> Figure {
    let mut all = Metrics::default();
    workers.iter().for_each(|w| all.merge(&gather(w)));
    all.report().auc
}

#[test]
fn auc_is_of_all_samples_and_no_mean_of_workers() {
    assert_eq!(auc(&[&[(1.0, 0.9), (0.0, 0.8)], &[(1.0, 0.3), (0.0, 0.2)]]), Figure::Value(0.75));
    let (one, two) = ([(1.0, 0.6), (0.0, 0.7), (0.0, 0.1)], [(1.0, 0.9), (1.0, 0.2), (0.0, 0.5)]);
    assert_eq!(auc(&[&one, &two]), Figure::Value(2.0 / 3.0));
    // An empty worker changes nothing.
    assert_eq!(auc(&[&one, &[], &two]), Figure::Value(2.0 / 3.0));
}

#[test]
fn ties_count_one_half() {
    assert_eq!(auc(&[&[(1.0, 0.5), (0.0, 0.5)]]), Figure::Value(0.5));
    assert_eq!(auc(&[&[(1.0, 0.0), (0.0, -0.0)]]), Figure::Value(0.5));
    // Of the four pairs: one won, two tied, one won.
    assert_eq!(auc(&[&[(1.0, 0.7), (1.0, 0.9), (0.0, 0.7), (0.0, 0.2)]]), Figure::Value(3.5 / 4.0));
}

#[test]
fn the_figures_are_those_worked_out_by_hand() {
    let r = gather(&[(1.0, 0.75), (0.0, 0.5), (1.0, 0.25), (0.0, 0.0)]).report();
    assert_eq!(r.count, 4);
    assert_eq!(r.accuracy, Figure::Value(0.5));
    // (0.0625 + 0.25 + 0.5625 + 0) / 4 = 0.21875
    assert_eq!(r.rmse, Figure::Value(0.21875f64.sqrt()));
    assert_eq!(r.mae, Figure::Value(0.375));
    assert_eq!(r.calibration, Figure::Value(0.75));
    // -(ln 3/4 + ln 1/2 + ln 1/4 + ln (1 - 1e-7)) / 4
    assert!((r.logloss.value().unwrap() - 0.5917809285329055).abs() < 1e-15, "{}", r.logloss);
    assert_eq!(r.auc, Figure::Value(0.75));
    assert_eq!((r.grouped_auc, r.groups), (None, None));
}

#[test]
fn a_certain_mistake_costs_the_clamp() {
    let r = gather(&[(1.0, 0.0)]).report();
    assert_eq!(r.logloss, Figure::Value(-LOGLOSS_CLAMP.ln()));
}

#[test]
fn grouped_auc_weighs_groups_by_their_samples() {
    let mut m = Metrics::default();
    // Group a: 1.0 of two samples. Group b: 0.5 of three. Group c has one class.
    for (group, label, score) in [("a", 1.0, 0.9), ("a", 0.0, 0.1), ("b", 1.0, 0.5), ("b", 0.0, 0.6), ("b", 0.0, 0.4), ("c", 1.0, 0.2)] {
        m.add_grouped(group, label, score);
    }
    let r = m.report();
    assert_eq!(r.grouped_auc, Some(Figure::Value((1.0 * 2.0 + 0.5 * 3.0) / 5.0)));
    assert_eq!(r.groups, Some((3, 2)));
}

#[test]
fn what_is_undefined_says_so() {
    let shown = |f: Figure| f.to_string();
    assert_eq!(shown(Metrics::default().report().auc), "undefined (no samples)");
    assert_eq!(shown(Metrics::default().report().rmse), "undefined (no samples)");
    assert_eq!(shown(gather(&[(1.0, 0.5)]).report().auc), "undefined (no negative sample)");
    assert_eq!(shown(gather(&[(0.0, 0.5)]).report().auc), "undefined (no positive sample)");
    assert_eq!(shown(gather(&[(0.0, 0.5)]).report().calibration), "undefined (the labels sum to 0)");
    let r = gather(&[(3.5, 2.0), (1.0, 1.0)]).report();
    assert_eq!(shown(r.auc), "undefined (1 of 2 labels are neither 0 nor 1)");
    assert_eq!(shown(r.logloss), "undefined (1 of 2 labels or scores are not from 0 to 1)");
    assert_eq!(shown(r.mae), "0.750000");
    let r = gather(&[(1.0, f64::NAN), (0.0, 0.5)]).report();
    assert_eq!(shown(r.mae.clone()), "undefined (1 of 2 samples have a score or label that is not finite)");
    assert_eq!(serde_json::to_string(&r.mae).unwrap().matches("\"undefined\":").count(), 1);
    assert_eq!(serde_json::to_string(&Figure::Value(0.5)).unwrap(), "0.5");
}

/// Samples without a pattern, some scores equal.
fn many(n: u64) -> Vec<(f64, f64)> {
    let mut state = 42u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    (0..n).map(|i| (f64::from(next() < 0.3), if i % 5 == 0 { 0.25 } else { f64::from(next() as f32) })).collect()
}

#[test]
fn any_number_of_workers_gives_the_same_bits() {
    let samples = many(2003);
    let mut one = Metrics::default();
    samples.iter().enumerate().for_each(|(i, &(l, s))| one.add_grouped(&format!("u{}", i % 17), l, s));
    for workers in [2, 3, 5, 64] {
        let mut parts = vec![Metrics::default(); workers];
        for (i, &(label, score)) in samples.iter().enumerate() {
            parts[i / 7 % workers].add_grouped(&format!("u{}", i % 17), label, score);
        }
        let mut all = Metrics::default();
        for part in parts.iter().rev() {
            all.merge(&Metrics::from_bytes(&part.to_bytes()).unwrap());
        }
        assert_eq!(all.report(), one.report(), "{workers}");
        assert_eq!(all, one);
    }
}

#[test]
fn auc_is_that_of_all_pairs() {
    let samples = many(400);
    let (mut twice, mut pairs) = (0, 0);
    for (_, p) in samples.iter().filter(|s| s.0 == 1.0) {
        for (_, n) in samples.iter().filter(|s| s.0 == 0.0) {
            twice += if p > n { 2 } else { i32::from(p == n) };
            pairs += 1;
        }
    }
    assert_eq!(gather(&samples).report().auc, Figure::Value(f64::from(twice) / f64::from(2 * pairs)));
}

#[test]
fn bytes_that_are_no_metrics_are_refused() {
    let mut m = gather(&many(20));
    m.add_grouped("g", 1.0, 0.5);
    let bytes = m.to_bytes();
    for end in 0..bytes.len() {
        assert!(Metrics::from_bytes(&bytes[..end]).is_err());
    }
    assert!(Metrics::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    assert_eq!(Metrics::from_bytes(&[9]).unwrap_err().to_string(), "no metrics: expected version 1, found 9");
    let mut long = bytes.clone();
    long[42..50].fill(0xff);
    assert!(Metrics::from_bytes(&long).is_err());
}
