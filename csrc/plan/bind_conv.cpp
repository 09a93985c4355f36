// Python view of the convolution planner.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "plan/conv_plan.h"
#include "plan/conv_walk.h"
#include "plan/operand.h"

namespace py = pybind11;
using Ints = std::vector<int64_t>;

namespace cnnkernels::plan {
namespace {

constexpr int kDefaultMultiprocessors = 132;  // H100 SXM

Dtype dtype_named(const std::string& name) {
  if (name == "bfloat16") return Dtype::bf16;
  if (name == "float16") return Dtype::f16;
  if (name == "float32") return Dtype::f32;
  if (name == "float64") return Dtype::f64;
  throw std::invalid_argument("dtype is '" + name +
                              "'; allowed are bfloat16, float16, float32, float64");
}

ConvProblem problem(const Ints& x, const Ints& weight, const Ints& stride, const Ints& padding,
                    const Ints& dilation, int groups, const std::string& dtype, bool residual,
                    bool pool) {
  if (x.size() != 4 || weight.size() != 4 || stride.size() != 2 || padding.size() != 2 ||
      dilation.size() != 2)
    throw std::invalid_argument("shapes are [N, C, H, W] and [K, C/groups, R, S], the rest pairs");
  ConvProblem p;
  p.n = x[0], p.c = x[1], p.h = x[2], p.w = x[3];
  p.k = weight[0], p.r = weight[2], p.s = weight[3];
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.pad_h = padding[0], p.pad_w = padding[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.groups = groups, p.residual = residual, p.pool = pool, p.dtype = dtype_named(dtype);
  return p;
}

std::string why_not(const ConvProblem& p, int sms) {
  std::string text = conv_why_not(p);
  // igemm takes all that is left but pooling, so the plans need not be made for every call.
  if (text.empty() && p.pool) text = choose_plan(p.group(), sms).why_not;
  return text;
}

py::dict map_dict(const TensorMap& m) {
  py::dict d;
  d["dims"] = Ints(m.dims, m.dims + m.rank);
  d["strides"] = Ints(m.strides, m.strides + m.rank - 1);
  d["box"] = Ints(m.box, m.box + m.rank);
  d["element_strides"] = Ints(m.element_strides, m.element_strides + m.rank);
  d["swizzle"] = m.swizzle;
  d["im2col"] = m.im2col;
  d["lower"] = Ints(m.lower, m.lower + 2);
  d["upper"] = Ints(m.upper, m.upper + 2);
  d["error"] = map_error(m) ? py::cast(map_error(m)) : py::none();
  return d;
}

py::dict plan_dict(const ConvProblem& g, const ConvPlan& plan, int sms) {
  py::dict d;
  d["instance"] = plan.instance->name;
  d["why_not"] = plan.why_not.empty() ? py::none() : py::cast(plan.why_not);
  if (!plan.why_not.empty()) return d;
  d["reason"] = reason(plan, sms);
  d["est_us"] = plan.us;
  d["stages"] = plan.stages;
  d["buffers"] = plan.buffers;
  d["shared_bytes"] = plan.shared_bytes;
  d["tiles"] = plan.tiles();
  d["grid"] = plan.grid;
  const Instance& i = *plan.instance;
  if (i.family == Family::igemm) {
    d["input"] = map_dict(g.pointwise() ? matrix_map(g, g.c, g.c, 128 / g.element_bytes(), i.pixels)
                                        : im2col_map(g, g.c, 128, i.pixels));
  } else {
    const HaloTile& t = plan.halo;
    d["input"] = map_dict(image_map(g, g.c, g.w, g.h, g.c, i.row_bytes, t.pitch, t.box_rows));
    py::dict tile;
    tile["whole_rows"] = t.whole_rows;
    tile["width"] = t.width, tile["rows"] = t.rows, tile["pitch"] = t.pitch;
    tile["pixels"] = t.pixels, tile["group_pixels"] = t.group_pixels;
    tile["column_tiles"] = t.column_tiles, tile["row_tiles"] = t.row_tiles;
    tile["stored_width"] = t.stored_width(), tile["box_rows"] = t.box_rows;
    std::vector<int> starts, shifts;
    for (int j = 0; j < t.pixels; ++j) starts.push_back(t.start(j));
    for (int r = 0; r < g.r; ++r)
      for (int s = 0; s < g.s; ++s) shifts.push_back(t.shift(r, s));
    tile["starts"] = starts, tile["shifts"] = shifts;
    d["halo"] = tile;
  }
  d["weights"] = map_dict(weight_map(g, i.row_bytes, i.channels));
  return d;
}

// What fetch_tile() in conv2d_igemm.cuh fetches in each of `split` blocks.
using Step = std::tuple<int, int, int, int, int>;
std::vector<std::vector<Step>> steps(int channels, const Ints& kernel, int shortcut_channels,
                                     int chunk, int split) {
  const int counts[2] = {static_cast<int>(ceil_div(channels, chunk) * kernel[0] * kernel[1]),
                         static_cast<int>(ceil_div(shortcut_channels, chunk))};
  std::vector<std::vector<Step>> blocks(split);
  for (int rank = 0; rank < split; ++rank) {
    const StepRange range = split_steps(counts[0] + counts[1], rank, split);
    for (int segment = 0, begin = 0; segment < 2; begin += counts[segment++]) {
      const int c = segment ? shortcut_channels : channels;
      const int width = segment ? 1 : static_cast<int>(kernel[1]);
      if (counts[segment] == 0) continue;
      const StepRange own = steps_inside(range, begin, counts[segment]);
      ConvStep step(own.first, static_cast<int>(ceil_div(c, chunk)), chunk, width);
      for (int i = own.first; i < own.last; ++i) {
        blocks[rank].emplace_back(segment, step.c, step.tap, step.r, step.s);
        step.advance(c, chunk, width);
      }
    }
  }
  return blocks;
}

}  // namespace

void bind_conv(py::module_& m) {
  m.def(
      "conv_why_not",
      [](const Ints& x, const Ints& weight, const Ints& stride, const Ints& padding,
         const Ints& dilation, int groups, const std::string& dtype, bool channels_last,
         bool residual, bool pool, const Ints& shortcut) -> py::object {
        std::string text = channels_last ? "" : "the kernels take channels_last";
        if (text.empty()) {
          ConvProblem p =
              problem(x, weight, stride, padding, dilation, groups, dtype, residual, pool);
          if (shortcut.size() == 5) {  // its C, H, W and stride
            p.shortcut_c = shortcut[0], p.shortcut_h = shortcut[1], p.shortcut_w = shortcut[2];
            p.shortcut_stride_h = shortcut[3], p.shortcut_stride_w = shortcut[4];
          }
          text = why_not(p, kDefaultMultiprocessors);
        }
        return text.empty() ? py::object(py::none()) : py::cast(text);
      },
      py::arg("x_shape"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("dtype"), py::arg("channels_last") = true,
      py::arg("residual") = false, py::arg("pool") = false, py::arg("shortcut") = Ints(),
      "Why the Hopper convolution kernels can't run this problem, or None. shortcut: [C, H, W, "
      "stride_h, stride_w] of a projection added to it.");
  m.def(
      "conv_plans",
      [](const Ints& x, const Ints& weight, const Ints& stride, const Ints& padding,
         const Ints& dilation, int groups, const std::string& dtype, bool residual, bool pool,
         int sms) {
        const ConvProblem p =
            problem(x, weight, stride, padding, dilation, groups, dtype, residual, pool);
        const std::string text = conv_why_not(p);
        if (!text.empty()) throw std::invalid_argument(text);
        std::vector<py::dict> plans;
        for (const ConvPlan& plan : plan_all(p.group(), sms))
          plans.push_back(plan_dict(p.group(), plan, sms));
        return plans;
      },
      py::arg("x_shape"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("dtype"), py::arg("residual") = false,
      py::arg("pool") = false, py::arg("sms") = kDefaultMultiprocessors,
      "Every instance's plan of one group, the best estimate first, unusable ones last.");
  m.def(
      "conv_choose",
      [](const Ints& x, const Ints& weight, const Ints& stride, const Ints& padding,
         const Ints& dilation, int groups, const std::string& dtype, bool residual, bool pool,
         int sms) {
        const ConvProblem p =
            problem(x, weight, stride, padding, dilation, groups, dtype, residual, pool);
        const std::string text = why_not(p, sms);
        if (!text.empty()) throw std::invalid_argument(text);
        return plan_dict(p.group(), cached_plan(p.group(), nullptr, sms), sms);
      },
      py::arg("x_shape"), py::arg("weight_shape"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::arg("dtype"), py::arg("residual") = false,
      py::arg("pool") = false, py::arg("sms") = kDefaultMultiprocessors,
      "The planner's choice: {instance, reason, est_us, ...} of one group.");
  m.def(
      "conv_instances",
      [] {
        std::vector<py::dict> rows;
        for (const Instance& i : kInstances) {
          py::dict d;
          d["name"] = i.name, d["channels"] = i.channels, d["pixels"] = i.pixels;
          d["row_bytes"] = i.row_bytes, d["why"] = i.why;
          d["measured"] = i.measured, d["split"] = i.split;
          d["pingpong"] = i.pingpong;
          rows.push_back(d);
        }
        return rows;
      },
      "The compiled convolution kernels.");
  m.def("conv_steps", &steps, py::arg("channels"), py::arg("kernel"), py::arg("shortcut_channels"),
        py::arg("chunk"), py::arg("split"),
        "igemm's walk, block by block: (segment, first channel, tap, filter row, filter column).");
  m.def("swizzled", &swizzled, py::arg("address"), py::arg("span"),
        "Where TMA puts, and wgmma finds, the byte at `address` of a buffer of that swizzle.");
  m.def("operand_descriptor", &operand_descriptor, py::arg("address"), py::arg("row_bytes"),
        py::arg("group_bytes"), "wgmma's 64-bit descriptor of an operand in shared memory.");
}

}  // namespace cnnkernels::plan

void bind_conv(py::module_& m) { cnnkernels::plan::bind_conv(m); }
