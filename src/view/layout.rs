//! Where boxes stand: in layers from top to bottom, each below what it reads; bodies are laid out inside their boxes.
//!
//! Arrows that pass layers get a place in each (one for all arrows of a box); layers are ordered by the mean place of
//! neighbours; places within a layer are those nearest to the neighbours that keep order and distance.

use super::scene::Scene;
use std::collections::BTreeMap;

/// Width of a character, height of a line, and the room around, in pixels.
pub(super) const CHAR: f64 = 6.7;
pub(super) const LINE: f64 = 15.0;
pub(super) const PAD: f64 = 9.0;
/// Room between boxes of a layer, and between layers.
const ACROSS: f64 = 22.0;
const DOWN: f64 = 38.0;
/// Layers that an arrow passes at most; one that goes further is drawn as two ends with its name.
const FAR: usize = 24;
/// Times that layers are ordered, up and down.
const SWEEPS: usize = 12;

/// A box and where it stands; its bodies relative to its corner.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    /// Of each body: its corner, and what is inside.
    pub(super) bodies: Vec<(f64, f64, Layout)>,
}

/// An arrow: the points that it goes through, or only its ends where it is far.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) arrow: usize,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) far: bool,
}

/// A picture that is laid out.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) places: Vec<Place>,
    pub(super) routes: Vec<Route>,
}

/// How wide a text is drawn.
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHAR
}

/// Lays a picture out.
pub(super) fn lay_out(scene: &Scene) -> Layout {
    let mut places: Vec<Place> = scene.items.iter().map(size).collect();
    let n = places.len();
    let mut reads: Vec<Vec<usize>> = vec![Vec::new(); n];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); n];
    for a in &scene.arrows {
        reads[a.to].push(a.from);
        readers[a.from].push(a.to);
    }
    let layer = layers(&reads, &readers);
    let mut grid = Grid::new(&layer, &readers);
    grid.order();
    let widths: Vec<f64> = (0..grid.spots.len()).map(|s| grid.spots[s].map_or(8.0, |i| places[i].width)).collect();
    let xs = grid.across(&widths);
    let mut heights = vec![0f64; grid.layers.len()];
    for (i, p) in places.iter().enumerate() {
        heights[layer[i]] = heights[layer[i]].max(p.height);
    }
    let mut top = vec![0f64; heights.len()];
    for l in 1..heights.len() {
        // More arrows between two layers need more room to turn.
        let busy = grid.layers[l - 1].len().max(grid.layers[l].len()) as f64;
        top[l] = top[l - 1] + heights[l - 1] + DOWN + (busy * 1.2).min(60.0);
    }
    for (i, p) in places.iter_mut().enumerate() {
        p.x = xs[i] - p.width / 2.0;
        p.y = top[layer[i]] + (heights[layer[i]] - p.height) / 2.0;
    }
    let left = places.iter().map(|p| p.x).chain(xs.iter().copied()).fold(f64::MAX, f64::min).min(f64::MAX);
    let left = if n == 0 { 0.0 } else { left };
    places.iter_mut().for_each(|p| p.x -= left);
    let xs: Vec<f64> = xs.iter().map(|x| x - left).collect();
    let routes = (0..scene.arrows.len()).map(|a| route(scene, a, &places, &layer, &grid, &xs, &top, &heights)).collect();
    let width = places.iter().map(|p| p.x + p.width).chain(xs.iter().copied()).fold(0.0, f64::max);
    let height = top.last().zip(heights.last()).map_or(0.0, |(t, h)| t + h);
    Layout { width, height, places, routes }
}

fn size(item: &super::scene::Item) -> Place {
    let lines = item.lines.iter().map(|l| width(l)).chain([width(&item.title) * 1.12]).fold(0.0, f64::max);
    let mut place =
        Place { width: lines + 2.0 * PAD + 8.0, height: (1 + item.lines.len()) as f64 * LINE + 2.0 * PAD - 4.0, ..Place::default() };
    if item.role == super::scene::Role::Table {
        place.height += 8.0;
    }
    let mut x = PAD;
    for body in &item.bodies {
        let inner = lay_out(body);
        let (w, h) = (inner.width.max(width(&body.title)) + 2.0 * PAD, inner.height + 2.0 * PAD + LINE);
        place.bodies.push((x, place.height, inner));
        x += w + PAD;
        place.width = place.width.max(x);
        place.height = place.height.max(place.bodies[0].1 + h + PAD);
    }
    let first = place.bodies.first().map(|b| b.1);
    place.bodies.iter_mut().for_each(|b| b.1 = first.unwrap_or(0.0));
    place
}

/// The layer of each box: one below the lowest that it reads; what reads nothing stands right above its first reader.
fn layers(reads: &[Vec<usize>], readers: &[Vec<usize>]) -> Vec<usize> {
    let n = reads.len();
    let mut layer = vec![0usize; n];
    let mut waits: Vec<usize> = reads.iter().map(Vec::len).collect();
    let mut ready: Vec<usize> = (0..n).filter(|&i| waits[i] == 0).collect();
    let mut order = Vec::with_capacity(n);
    while let Some(i) = ready.pop() {
        order.push(i);
        for &r in &readers[i] {
            layer[r] = layer[r].max(layer[i] + 1);
            waits[r] -= 1;
            if waits[r] == 0 {
                ready.push(r);
            }
        }
    }
    for &i in order.iter().rev() {
        if reads[i].is_empty()
            && let Some(first) = readers[i].iter().map(|&r| layer[r]).min()
        {
            layer[i] = first.saturating_sub(1);
        }
    }
    layer
}

/// Layers of spots: a box, or a place where arrows of a box pass.
struct Grid {
    /// The box of a spot; those of boxes come first.
    spots: Vec<Option<usize>>,
    /// Spots of each layer, from left to right.
    layers: Vec<Vec<usize>>,
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
    /// Where arrows of a box pass a layer.
    passing: BTreeMap<(usize, usize), usize>,
}

impl Grid {
    fn new(layer: &[usize], readers: &[Vec<usize>]) -> Self {
        let n = layer.len();
        let count = layer.iter().max().map_or(0, |m| m + 1);
        let mut grid = Grid {
            spots: (0..n).map(Some).collect(),
            layers: vec![Vec::new(); count],
            above: vec![Vec::new(); n],
            below: vec![Vec::new(); n],
            passing: BTreeMap::new(),
        };
        (0..n).for_each(|i| grid.layers[layer[i]].push(i));
        for i in 0..n {
            let near: Vec<usize> = readers[i].iter().copied().filter(|&r| layer[r] > layer[i] && layer[r] - layer[i] <= FAR).collect();
            let deepest = near.iter().map(|&r| layer[r]).max().unwrap_or(layer[i]);
            let mut last = i;
            for l in layer[i] + 1..=deepest {
                near.iter().filter(|&&r| layer[r] == l).for_each(|&r| grid.link(last, r));
                if l < deepest {
                    let spot = grid.spots.len();
                    grid.spots.push(None);
                    grid.above.push(Vec::new());
                    grid.below.push(Vec::new());
                    grid.layers[l].push(spot);
                    grid.link(last, spot);
                    grid.passing.insert((i, l), spot);
                    last = spot;
                }
            }
        }
        grid
    }

    fn link(&mut self, a: usize, b: usize) {
        self.below[a].push(b);
        self.above[b].push(a);
    }

    /// Orders each layer by the mean place of the neighbours above, then below, a few times; the best order is kept.
    fn order(&mut self) {
        let mut place = vec![0f64; self.spots.len()];
        let number = |layers: &[Vec<usize>], place: &mut Vec<f64>| {
            for layer in layers {
                layer.iter().enumerate().for_each(|(k, &s)| place[s] = (k as f64 + 0.5) / layer.len() as f64);
            }
        };
        number(&self.layers, &mut place);
        let mut best = (self.crossings(), self.layers.clone());
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            let count = self.layers.len();
            for k in 0..count {
                let l = if down { k } else { count - 1 - k };
                let next = if down { &self.above } else { &self.below };
                let mut keyed: Vec<(f64, usize, usize)> = Vec::with_capacity(self.layers[l].len());
                for (at, &s) in self.layers[l].iter().enumerate() {
                    let to = &next[s];
                    let mean = to.iter().map(|&t| place[t]).sum::<f64>() / to.len().max(1) as f64;
                    keyed.push((if to.is_empty() { place[s] } else { mean }, at, s));
                }
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                let width = keyed.len() as f64;
                self.layers[l] = keyed.into_iter().map(|k| k.2).collect();
                self.layers[l].iter().enumerate().for_each(|(k, &s)| place[s] = (k as f64 + 0.5) / width);
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.layers.clone());
            }
        }
        self.layers = best.1;
    }

    /// How often arrows between layers cross, counted in a tree of sums.
    fn crossings(&self) -> u64 {
        let mut total = 0;
        let mut at = vec![0usize; self.spots.len()];
        for layer in &self.layers {
            layer.iter().enumerate().for_each(|(k, &s)| at[s] = k);
        }
        for pair in self.layers.windows(2) {
            let mut sums = vec![0u64; pair[1].len() + 1];
            let mut seen = 0;
            for &s in &pair[0] {
                let mut ends: Vec<usize> = self.below[s].iter().map(|&t| at[t]).collect();
                ends.sort_unstable();
                for &e in &ends {
                    let mut i = e + 1;
                    let mut left = 0;
                    while i > 0 {
                        left += sums[i];
                        i &= i - 1;
                    }
                    total += seen - left;
                }
                for e in ends {
                    seen += 1;
                    let mut i = e + 1;
                    while i < sums.len() {
                        sums[i] += 1;
                        i += i & i.wrapping_neg();
                    }
                }
            }
        }
        total
    }

    /// The middle of each spot: near the middle of its neighbours, in the order and at the distances of its layer.
    fn across(&self, widths: &[f64]) -> Vec<f64> {
        let mut x = vec![0f64; self.spots.len()];
        for layer in &self.layers {
            let mut end = 0.0;
            for &s in layer {
                x[s] = end + widths[s] / 2.0;
                end += widths[s] + ACROSS;
            }
            layer.iter().for_each(|&s| x[s] -= end / 2.0);
        }
        for sweep in 0..24u32 {
            let count = self.layers.len();
            for k in 0..count {
                let l = if sweep % 2 == 0 { k } else { count - 1 - k };
                let layer = &self.layers[l];
                let middle = layer.iter().map(|&s| x[s]).sum::<f64>() / layer.len().max(1) as f64;
                let wanted: Vec<(f64, f64)> = layer.iter().map(|&s| self.wanted(s, &x, sweep).unwrap_or((middle, 0.01))).collect();
                settle(layer, &wanted, widths, &mut x);
            }
        }
        x
    }

    /// Where a spot would like to be, and how much that counts: passing arrows are to be straight.
    fn wanted(&self, s: usize, x: &[f64], sweep: u32) -> Option<(f64, f64)> {
        let (up, down) = (&self.above[s], &self.below[s]);
        let sides: Vec<&usize> = match sweep {
            0..=19 if sweep.is_multiple_of(2) => up.iter().collect(),
            0..=19 => down.iter().collect(),
            _ => up.iter().chain(down).collect(),
        };
        if up.is_empty() && down.is_empty() {
            return None;
        }
        if sides.is_empty() {
            return Some((x[s], 0.1));
        }
        let mean = |of: &[&usize]| of.iter().map(|&&t| x[t]).sum::<f64>() / of.len() as f64;
        if self.spots[s].is_some() {
            return Some((mean(&sides), 1.0));
        }
        let passing: Vec<&usize> = sides.iter().copied().filter(|&&t| self.spots[t].is_none()).collect();
        Some(if passing.is_empty() { (mean(&sides), 0.5) } else { (mean(&passing), 12.0) })
    }
}

/// The places nearest to the wanted ones (least squares) at which a layer keeps its order and distances.
fn settle(layer: &[usize], wanted: &[(f64, f64)], widths: &[f64], x: &mut [f64]) {
    // Without the widths, places must only not fall; where they would, neighbours share their mean.
    let mut offset = 0.0;
    let mut groups: Vec<(f64, f64, usize)> = Vec::with_capacity(layer.len());
    let mut offsets = Vec::with_capacity(layer.len());
    for (k, &s) in layer.iter().enumerate() {
        if k > 0 {
            offset += (widths[layer[k - 1]] + widths[s]) / 2.0 + ACROSS;
        }
        offsets.push(offset);
        let (place, weight) = wanted[k];
        let mut group = ((place - offset) * weight, weight, 1);
        while let Some(last) = groups.last().filter(|g| g.0 / g.1 > group.0 / group.1) {
            group = (group.0 + last.0, group.1 + last.1, group.2 + last.2);
            groups.pop();
        }
        groups.push(group);
    }
    let mut k = 0;
    for (sum, weight, count) in groups {
        for _ in 0..count {
            x[layer[k]] = sum / weight + offsets[k];
            k += 1;
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn route(scene: &Scene, arrow: usize, places: &[Place], layer: &[usize], grid: &Grid, xs: &[f64], top: &[f64], heights: &[f64]) -> Route {
    let a = &scene.arrows[arrow];
    let (from, to) = (&places[a.from], &places[a.to]);
    let start = (from.x + from.width / 2.0, from.y + from.height);
    let end = (to.x + to.width / 2.0, to.y);
    let far = layer[a.to] <= layer[a.from] || layer[a.to] - layer[a.from] > FAR;
    let mut points = vec![start];
    if !far {
        for l in layer[a.from] + 1..layer[a.to] {
            let x = xs[grid.passing[&(a.from, l)]];
            points.push((x, top[l]));
            points.push((x, top[l] + heights[l]));
        }
    }
    points.push(end);
    Route { arrow, points, far }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse_model;
    use crate::view::Scene;

    fn laid_out(text: &str) -> (Scene, Layout) {
        let scene = Scene::of(&parse_model(text).unwrap());
        let layout = lay_out(&scene);
        (scene, layout)
    }

    #[test]
    fn boxes_stand_below_what_they_read_and_beside_each_other() {
        let text = "graph g(x: float32[4], z: float32[4]) -> (y) {\n  a = Relu(x)\n  b = Neg(a)\n  c = Add(a, b)\n  d = Mul(c, x)\n  y = Add(d, z)\n}";
        let (scene, layout) = laid_out(text);
        for a in &scene.arrows {
            let (from, to) = (&layout.places[a.from], &layout.places[a.to]);
            assert!(to.y >= from.y + from.height, "{a:?}");
        }
        for (i, a) in layout.places.iter().enumerate() {
            for b in &layout.places[..i] {
                let apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
                assert!(apart, "{a:?} {b:?}");
            }
        }
        // An arrow that passes two layers goes through both.
        assert!(layout.routes.iter().any(|r| r.points.len() > 4));
    }

    #[test]
    fn places_are_nearest_to_the_wanted_ones() {
        let mut x = [0.0; 3];
        settle(&[0, 1, 2], &[(10.0, 1.0), (10.0, 1.0), (500.0, 1.0)], &[20.0; 3], &mut x);
        assert_eq!(x, [10.0 - 21.0, 10.0 + 21.0, 500.0]);
    }

    #[test]
    fn two_arrows_that_cross_are_counted() {
        let readers = vec![vec![3], vec![2], vec![], vec![]];
        let mut grid = Grid::new(&[0, 0, 1, 1], &readers);
        assert_eq!(grid.crossings(), 1);
        grid.order();
        assert_eq!(grid.crossings(), 0);
    }
}
