//! Traces for the hit ratios: read from their files, given sizes, and made to jump.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use super::{common, weights};

/// The object of each request, with the size and the weight of each object in bytes.
pub struct Trace {
    pub requests: Vec<u32>,
    pub sizes: Arc<[usize]>,
    pub weights: Vec<u64>,
    /// The weight of all objects. A capacity is a percentage of it.
    pub footprint: u64,
    /// The number of requests at the beginning that are not counted.
    pub uncounted: usize,
}

impl Trace {
    fn new(requests: Vec<u32>, sizes: Vec<usize>) -> Trace {
        let weights = weights(&sizes);
        Trace {
            footprint: weights.iter().sum(),
            requests,
            sizes: sizes.into(),
            weights,
            uncounted: 0,
        }
    }

    /// The first half of the requests, then the same requests under other names. Only those after the
    /// jump are counted. The capacities are percentages of the weight of all objects of the original.
    pub fn jump(self) -> Trace {
        let half = &self.requests[..self.requests.len() / 2];
        let objects = self.sizes.len() as u32;
        let renamed = half.iter().map(|id| id + objects);
        Trace {
            uncounted: half.len(),
            requests: half.iter().copied().chain(renamed).collect(),
            sizes: [&*self.sizes, &*self.sizes].concat().into(),
            weights: [&*self.weights, &*self.weights].concat(),
            footprint: self.footprint,
        }
    }
}

/// A trace by its name, or the reason why there is none. `NAME+kv` has drawn sizes, where `NAME` has
/// equal ones; `NAME-jump` is the trace with a jump.
pub fn read(directory: &Path, name: &str) -> Result<Trace, String> {
    if let Some(name) = name.strip_suffix("-jump") {
        return read(directory, name).map(Trace::jump);
    }
    if let Some(name) = name.strip_suffix("+kv") {
        let histogram = Histogram::read(&directory.join("cachelib-kvcache_reg-sizes.json.xz"))?;
        let Trace {
            requests, sizes, ..
        } = read(directory, name)?;
        let sizes = (0..sizes.len() as u64).map(|id| histogram.draw(id));
        return Ok(Trace::new(requests, sizes.collect()));
    }
    if name == "nasa1d" {
        return read_sized(&directory.join("nasa-19950801.csv.xz"));
    }
    let requests = read_keys(&directory.join(format!("{name}.trace.xz")))?;
    let objects = requests.iter().max().map_or(0, |&id| id as usize + 1);
    Ok(Trace::new(requests, vec![0; objects]))
}

fn unpack(path: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut bytes)
        .map_err(|e| format!("{}: {e:?}", path.display()))?;
    Ok(bytes)
}

/// Big-endian 32-bit keys, numbered by first appearance.
fn read_keys(path: &Path) -> Result<Vec<u32>, String> {
    let mut numbers = HashMap::new();
    let number = |key: &[u8]| {
        let next = numbers.len() as u32;
        *numbers
            .entry([key[0], key[1], key[2], key[3]])
            .or_insert(next)
    };
    Ok(unpack(path)?.chunks_exact(4).map(number).collect())
}

/// Lines of `id,size`.
fn read_sized(path: &Path) -> Result<Trace, String> {
    let text = String::from_utf8(unpack(path)?).map_err(|e| e.to_string())?;
    let (mut requests, mut sizes) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let numbers = line
            .split_once(',')
            .and_then(|(id, size)| Some((id.parse::<u32>().ok()?, size.parse::<usize>().ok()?)));
        let (id, size) =
            numbers.ok_or_else(|| format!("{}: {line:?} is not id,size", path.display()))?;
        if sizes.len() <= id as usize {
            sizes.resize(id as usize + 1, 0);
        }
        sizes[id as usize] = size;
        requests.push(id);
    }
    Ok(Trace::new(requests, sizes))
}

/// CacheLib's histogram of value sizes: between edge n and edge n + 1 with weight n.
struct Histogram {
    edges: Vec<u64>,
    sums: Vec<u64>,
}

impl Histogram {
    fn read(path: &Path) -> Result<Histogram, String> {
        let text = String::from_utf8(unpack(path)?).map_err(|e| e.to_string())?;
        let list = |name: &str| -> Option<Vec<f64>> {
            let from = &text[text.find(name)?..];
            let numbers = from[from.find('[')? + 1..from.find(']')?].split(',');
            numbers.map(|n| n.trim().parse().ok()).collect()
        };
        let lists = list("\"valSizeRange\"").zip(list("\"valSizeRangeProbability\""));
        let (edges, weights) =
            lists.ok_or_else(|| format!("{}: no histogram in it", path.display()))?;
        let mut sum = 0.0;
        let sums = weights.iter().map(|weight| {
            sum += weight;
            sum as u64
        });
        Ok(Histogram {
            sums: sums.collect(),
            edges: edges.iter().map(|&edge| edge as u64).collect(),
        })
    }

    fn draw(&self, id: u64) -> usize {
        let mut rng = common::Rng(id);
        let total = self.sums.last().copied().unwrap_or(1);
        let at = rng.next() % total;
        let bucket = self.sums.partition_point(|&sum| sum <= at);
        let low = self.edges[bucket.min(self.edges.len() - 1)];
        let high = self.edges[(bucket + 1).min(self.edges.len() - 1)].max(low + 1);
        (low + rng.next() % (high - low)) as usize
    }
}
