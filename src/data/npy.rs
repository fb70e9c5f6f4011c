//! NumPy's array files: the header, and elements read by position. Source: numpy.lib.format, versions 1.0 to 3.0.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, numel};
use std::fs::File;
use std::sync::Arc;

/// Headers longer than this are refused.
const MAX_HEADER: usize = 1 << 20;

/// Bytes that can be read at any position by several threads at once.
#[derive(Debug, Clone)]
pub enum Source {
    Memory(Arc<[u8]>),
    /// From `start`, `len` bytes.
    File {
        file: Arc<File>,
        start: u64,
        len: u64,
    },
}

impl Source {
    pub fn len(&self) -> u64 {
        match self {
            Source::Memory(b) => b.len() as u64,
            Source::File { len, .. } => *len,
        }
    }

    /// The bytes from `at` on, as many as `out` takes.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(Error::usage("it is cut short; write it again"));
        }
        match self {
            Source::Memory(b) => out.copy_from_slice(&b[at as usize..at as usize + out.len()]),
            Source::File { file, start, .. } => read_at(file, start + at, out).map_err(|e| Error::usage(format!("it cannot be read: {e}")))?,
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, at: u64, out: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(not(unix))]
fn read_at(file: &File, at: u64, out: &mut [u8]) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut file = file;
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(out)
}

/// An array on disk.
#[derive(Debug, Clone)]
pub struct Npy {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// First index varies fastest.
    fortran: bool,
    big_endian: bool,
    source: Source,
    /// Of the first element.
    offset: u64,
}

impl Npy {
    /// Reads the header. Errors do not name the file.
    pub fn open(source: Source) -> Result<Npy> {
        let not = || Error::usage("it is not a NumPy array; write it with numpy.save or numpy.savez");
        let mut head = [0u8; 12];
        let short = source.len() < 12;
        source.read(0, &mut head[..if short { 10.min(source.len() as usize) } else { 12 }])?;
        if head[..6] != *b"\x93NUMPY" {
            return Err(not());
        }
        let (start, len) = match head[6] {
            1 => (10, u16::from_le_bytes([head[8], head[9]]) as usize),
            2 | 3 => (12, u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize),
            v => return Err(Error::usage(format!("it is of version {v} of NumPy's format, which is not known"))),
        };
        if len > MAX_HEADER {
            return Err(not());
        }
        let mut header = vec![0; len];
        source.read(start, &mut header)?;
        let header = String::from_utf8_lossy(&header).into_owned();
        let descr = value(&header, "descr").ok_or_else(not)?;
        let fortran = value(&header, "fortran_order").ok_or_else(not)?.starts_with("True");
        let shape = value(&header, "shape").and_then(parse_shape).ok_or_else(not)?;
        let (dtype, big_endian) = parse_type(descr)?;
        let offset = start + len as u64;
        let want = numel(&shape).and_then(|n| n.checked_mul(dtype.bits() / 8));
        match want {
            Some(want) if want as u64 <= source.len() - offset => Ok(Npy { dtype, shape, fortran, big_endian, source, offset }),
            _ => Err(Error::usage("it is cut short: it has fewer elements than its header says; write it again")),
        }
    }

    /// Entries `from..to` along the first axis, as a tensor of shape `[to − from, …]`.
    pub fn rows(&self, from: usize, to: usize) -> Result<Tensor> {
        let size = self.dtype.bits() / 8;
        let inner: usize = self.shape.iter().skip(1).product();
        let mut shape = self.shape.clone();
        shape[0] = to - from;
        let mut bytes = vec![0u8; (to - from) * inner * size];
        if self.fortran && self.shape.len() > 1 {
            self.gather(from, to, size, &mut bytes)?;
        } else {
            self.source.read(self.offset + (from * inner * size) as u64, &mut bytes)?;
        }
        if self.big_endian {
            bytes.chunks_exact_mut(size).for_each(|c| c.reverse());
        }
        Tensor::new(self.dtype, shape, bytes.into())
    }

    /// The whole array.
    pub fn whole(&self) -> Result<Tensor> {
        match self.shape.first() {
            Some(&n) => self.rows(0, n),
            None => {
                let mut bytes = vec![0u8; self.dtype.bits() / 8];
                self.source.read(self.offset, &mut bytes)?;
                if self.big_endian {
                    bytes.reverse();
                }
                Tensor::new(self.dtype, vec![], bytes.into())
            }
        }
    }

    /// Rows of an array whose first index varies fastest.
    fn gather(&self, from: usize, to: usize, size: usize, out: &mut [u8]) -> Result<()> {
        let (n, rows) = (self.shape[0], to - from);
        let rest = &self.shape[1..];
        let inner: usize = rest.iter().product();
        let mut column = vec![0u8; rows * size];
        for k in 0..inner {
            // k counts the other indices in Fortran's order; `at` is their place in C's.
            let (mut left, mut at, mut stride) = (k, 0, inner);
            for &d in rest {
                stride /= d;
                at += left % d * stride;
                left /= d;
            }
            self.source.read(self.offset + ((k * n + from) * size) as u64, &mut column)?;
            for (r, element) in column.chunks_exact(size).enumerate() {
                out[(r * inner + at) * size..][..size].copy_from_slice(element);
            }
        }
        Ok(())
    }
}

/// What stands behind `'key':` in a header.
fn value<'h>(header: &'h str, key: &str) -> Option<&'h str> {
    let at = header.find(&format!("'{key}'"))?;
    Some(header[at..].split_once(':')?.1.trim_start())
}

fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('(')?.split_once(')')?.0;
    inner.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.trim_end_matches('L').parse().ok()).collect()
}

fn parse_type(descr: &str) -> Result<(DType, bool)> {
    let name = descr.strip_prefix('\'').and_then(|d| d.split_once('\'')).map(|d| d.0);
    let Some(name) = name else {
        return Err(Error::usage("it is a structured array; save each field as an array of its own"));
    };
    let (order, code) = name.split_at(name.starts_with(['<', '>', '|', '=']) as usize);
    let dtype = match code {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "b1" | "?" => DType::Bool,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        _ => return Err(Error::usage(format!("its elements are of NumPy's type {name}, which no model takes; save numbers"))),
    };
    Ok((dtype, order == ">"))
}
