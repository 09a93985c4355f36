// Tiles of the halo kernels (stride 1): a box of input pixels lies in shared memory once, and every
// filter tap reads it at a shifted start address. wgmma takes pixels in groups of 8 neighbours, the
// groups a constant distance apart, so a tile of N pixels is either
//   columns: 8 output columns x N / 8 rows; a group is one row, the distance is the box's pitch, or
//   rows:    whole output rows with pitch W + pad: the zero columns between two rows are shared,
//   the
//            tile is one run of pixels (distance 8), and the few pixels between rows are thrown
//            away.
#pragma once

#include <algorithm>

#include "plan/conv_problem.h"

namespace cnnkernels::plan {

struct HaloTile {
  int pixels = 0;  // N of wgmma
  bool whole_rows = false;
  int width = 0;         // output columns of a tile that are stored (before clipping)
  int rows = 0;          // output rows of a tile
  int pitch = 0;         // pixels of one row of the box
  int box_rows = 0;      // input rows of the box
  int group_pixels = 0;  // distance between groups of 8 output pixels in the box
  int column_tiles = 0, row_tiles = 0;

  int box_pixels() const { return pitch * box_rows; }
  int64_t tiles(int64_t n) const { return n * column_tiles * row_tiles; }
  // Where in the box output pixel i of the tile starts, and how far tap (r, s) shifts it.
  int start(int i) const { return i / 8 * group_pixels + i % 8; }
  int shift(int r, int s) const { return r * pitch + s; }
  // Pixels of a stored row: whole-row tiles store the discarded pixels too, TMA clips them.
  int stored_width() const { return whole_rows ? pitch : 8; }
};

inline HaloTile column_tile(const ConvProblem& x, int pixels) {
  HaloTile t;
  t.pixels = pixels;
  t.width = 8, t.rows = pixels / 8;
  t.pitch = 8 + x.s - 1, t.box_rows = t.rows + x.r - 1;
  t.group_pixels = t.pitch;
  t.column_tiles = static_cast<int>(ceil_div(x.q(), 8));
  t.row_tiles = static_cast<int>(ceil_div(x.p(), t.rows));
  return t;
}

// rows == 0: the output is too wide for a run of `pixels`.
inline HaloTile row_tile(const ConvProblem& x, int pixels) {
  HaloTile t;
  t.pixels = pixels;
  t.whole_rows = true;
  t.width = x.q(), t.pitch = std::max(x.w + x.pad_w, x.q());
  t.rows = std::min(pixels / t.pitch, x.p());
  // The last pixels of the last row read their zeros at the start of one row more.
  t.box_rows = t.rows + x.r - 1 + (x.pad_w > 0 ? 1 : 0);
  t.group_pixels = 8;
  t.column_tiles = 1;
  t.row_tiles = t.rows ? static_cast<int>(ceil_div(x.p(), t.rows)) : 0;
  return t;
}

// The one with fewer tiles; pooling needs both rows of a pair in the same tile.
inline HaloTile halo_tile(const ConvProblem& x, int pixels) {
  const HaloTile columns = column_tile(x, pixels), rows = row_tile(x, pixels);
  const bool fits = rows.rows > 0 && rows.pitch <= 256 && rows.box_rows <= 256;
  return fits && !x.pool && rows.tiles(1) < columns.tiles(1) ? rows : columns;
}

}  // namespace cnnkernels::plan
