//! Products of matrices, on the calling thread.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// A matrix in a slice: `rows × cols`, row by row with `stride` numbers from one row to the next, or its transpose.
#[derive(Clone, Copy)]
pub struct Matrix<'a>(MatRef<'a, f32>);

impl<'a> Matrix<'a> {
    /// # Panics
    /// If the slice is too short: a programming error.
    pub fn new(values: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(values, rows, cols, cols)
    }

    /// The same with `stride ≥ cols` numbers from one row to the next.
    pub fn strided(values: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        Matrix(MatRef::from_row_major_slice_with_stride(&values[..len], rows, cols, stride))
    }

    pub fn transposed(self) -> Self {
        Matrix(self.0.transpose())
    }

    /// The same where `yes`, transposed.
    pub fn transposed_if(self, yes: bool) -> Self {
        if yes { self.transposed() } else { self }
    }
}

/// `c = a · b`, or `c += a · b` where `add`; `c` lies row by row, `stride` numbers from one row to the next.
///
/// # Panics
/// If the shapes do not fit: a programming error.
pub fn multiply(c: &mut [f32], stride: usize, a: Matrix, b: Matrix, add: bool) {
    let (rows, cols) = (a.0.nrows(), b.0.ncols());
    if rows == 0 || cols == 0 {
        return;
    }
    let len = (rows - 1) * stride + cols;
    // faer 0.24.4's from_row_major_slice_with_stride_mut mistakes rows for columns, and writes behind the slice.
    let c = MatMut::from_column_major_slice_with_stride_mut(&mut c[..len], cols, rows, stride);
    matmul(c.transpose_mut(), if add { Accum::Add } else { Accum::Replace }, a.0, b.0, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_and_transposed_matrices() {
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0, 5.0, 6.0];
        let b = [1.0, 0.0, -1.0, 2.0];
        let mut c = vec![1.0; 12];
        multiply(&mut c, 4, Matrix::strided(&a, 3, 2, 3), Matrix::new(&b, 2, 2), true);
        assert_eq!(c, [0.0, 5.0, 1.0, 1.0, 0.0, 9.0, 1.0, 1.0, 0.0, 13.0, 1.0, 1.0]);
        let mut c = vec![7.0; 4];
        multiply(&mut c, 2, Matrix::new(&a[..6], 2, 3).transposed_if(false), Matrix::new(&a[..6], 2, 3).transposed(), false);
        assert_eq!(c, [86.0, 92.0, 92.0, 106.0]);
    }
}
