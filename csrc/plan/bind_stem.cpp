// Python view of the stem convolutions' arithmetic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "plan/conv_stem.h"

namespace py = pybind11;
using Ints = std::vector<int64_t>;

namespace cnnkernels::plan {
namespace {

Dtype stem_dtype(const std::string& name) {
  if (name == "bfloat16") return Dtype::bf16;
  if (name == "float16") return Dtype::f16;
  if (name == "float32") return Dtype::f32;
  return Dtype::f64;  // which stem_why_not() refuses
}

// x [N, 3, H, W], weight [K, 3, R, S]; pool: [] or [padding, ceil_mode].
StemProblem problem(const Ints& x, const Ints& weight, int stride, const Ints& padding,
                    const std::string& input_dtype, const std::string& dtype, const Ints& pool) {
  if (x.size() != 4 || weight.size() != 4 || padding.size() != 2)
    throw std::invalid_argument("shapes are [N, 3, H, W] and [K, 3, R, S], padding is a pair");
  StemProblem p;
  p.n = x[0], p.h = x[2], p.w = x[3];
  p.k = weight[0], p.r = weight[2], p.s = weight[3];
  p.stride = stride, p.pad_h = padding[0], p.pad_w = padding[1];
  p.dtype = stem_dtype(dtype);
  p.input = input_dtype == dtype       ? StemInput::same
            : input_dtype == "float32" ? StemInput::f32
                                       : StemInput::u8;
  p.pool = !pool.empty();
  if (p.pool) p.pool_pad = pool[0], p.ceil_mode = pool[1] != 0;
  return p;
}

std::string why_not(const Ints& x, const Ints& weight, int stride, const Ints& padding,
                    const std::string& input_dtype, const std::string& dtype, const Ints& pool) {
  if (x.at(1) != 3) return "stem kernels take 3 input channels";
  if (input_dtype != dtype && input_dtype != "float32" && input_dtype != "uint8")
    return "stem kernels convert float32 and uint8 input only";
  const char* text = stem_why_not(problem(x, weight, stride, padding, input_dtype, dtype, pool));
  return text ? text : "";
}

py::dict shape_dict(const StemShape& s) {
  py::dict d;
  d["pixels"] = s.pixels, d["m_tiles"] = s.m_tiles, d["taps"] = s.taps, d["stride"] = s.stride;
  d["depth"] = s.depth(), d["tap_steps"] = s.tap_steps(), d["element_bytes"] = s.element_bytes;
  d["pixel_bytes"] = s.pixel_bytes(), d["plane_bytes"] = s.plane_bytes();
  d["row_pixels"] = s.row_pixels(), d["row_bytes"] = s.row_bytes();
  d["ring"] = s.ring(), d["gatherers"] = s.gatherers();
  d["shared_bytes"] = s.shared_bytes(), d["threads"] = s.threads();
  d["stage_pixels"] = s.stage_pixels();
  d["registers"] = s.producer_registers() * 32 * s.producer_warps() + s.consumer_registers() * 256;
  std::vector<int> order_nhwc, order_nchw, chunks, operands;
  for (int i = 0; i < s.depth(); ++i)
    for (bool nhwc : {true, false}) {
      const StemDepth at(i, s.stride, nhwc);
      (nhwc ? order_nhwc : order_nchw).push_back((at.c * s.stride + at.dy) * s.stride + at.dx);
    }
  for (int pixel = 0; pixel < s.row_pixels(); ++pixel)
    for (int chunk = 0; chunk < s.tap_steps() * 2; ++chunk)
      chunks.push_back(s.chunk_offset(pixel, chunk));
  for (int tap = 0; tap < s.taps; ++tap)
    for (int step = 0; step < s.tap_steps(); ++step)
      operands.push_back(s.operand_offset(tap, step));
  d["order_nhwc"] = order_nhwc, d["order_nchw"] = order_nchw;
  d["chunk_offsets"] = chunks, d["operand_offsets"] = operands;
  return d;
}

py::dict plan_of(const Ints& x, const Ints& weight, int stride, const Ints& padding,
                 const std::string& input_dtype, const std::string& dtype, const Ints& pool,
                 int sms) {
  const std::string reason = why_not(x, weight, stride, padding, input_dtype, dtype, pool);
  if (!reason.empty()) throw std::invalid_argument(reason);
  const StemProblem p = problem(x, weight, stride, padding, input_dtype, dtype, pool);
  const StemShape shape = stem_shape(p);
  const StemTiling t = stem_tiling(p, shape, sms);
  py::dict d = shape_dict(shape);
  d["output"] = Ints{p.n, p.k, p.out_p(), p.out_q()};
  d["conv_output"] = Ints{p.p(), p.q()};
  d["columns"] = t.columns, d["segments"] = t.segments, d["bands"] = t.bands;
  d["channel_blocks"] = t.channel_blocks, d["grid"] = stem_grid(t, sms);
  d["verified"] = p.verified();
  std::vector<py::dict> tiles;
  for (int i = 0; i < t.tiles; ++i) {
    py::dict tile;
    if (p.pool) {
      const StemPoolTile at(t, i, shape.pixels);
      tile["n"] = at.n, tile["q0"] = at.q0, tile["row0"] = at.row0, tile["rows"] = at.rows;
      tile["out_row"] = at.out_row, tile["out_rows"] = at.out_rows, tile["out_col"] = at.out_col;
      tile["lead"] = at.lead, tile["limit"] = at.limit, tile["left"] = at.left;
    } else {
      const StemTile at(t, i, shape.pixels);
      tile["n"] = at.n, tile["q0"] = at.q0, tile["row0"] = at.row0, tile["rows"] = at.rows;
    }
    tiles.push_back(tile);
  }
  d["tiles"] = tiles;
  return d;
}

}  // namespace
}  // namespace cnnkernels::plan

void bind_stem(py::module_& m) {
  using namespace cnnkernels::plan;
  m.def("stem_why_not", &why_not, py::arg("input_shape"), py::arg("weight_shape"),
        py::arg("stride"), py::arg("padding"), py::arg("input_dtype"), py::arg("dtype"),
        py::arg("pool") = Ints(),
        "Why no stem kernel takes this convolution, or ''. dtype: weight's and the output's; pool: "
        "[] or [padding, ceil_mode] of a 3x3/2 max-pool.");
  m.def(
      "stem_verified",
      [](const std::string& input_dtype, const std::string& dtype, bool pool) {
        return problem({1, 3, 1, 1}, {1, 3, 1, 1}, 1, {0, 0}, input_dtype, dtype,
                       pool ? Ints{0, 0} : Ints{})
            .verified();
      },
      py::arg("input_dtype"), py::arg("dtype"), py::arg("pool"),
      "Whether a GPU has run and checked this kind of stem kernel.");
  m.def("stem_plan", &plan_of, py::arg("input_shape"), py::arg("weight_shape"), py::arg("stride"),
        py::arg("padding"), py::arg("input_dtype"), py::arg("dtype"), py::arg("pool") = Ints(),
        py::arg("sms") = 132, "The instance, its shared memory, and every tile of a launch.");
}
