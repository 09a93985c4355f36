// How an instance runs a problem (tiles, shared memory, grid, estimate) and which instance is best.
#pragma once

#include <cstdio>
#include <string>
#include <tuple>
#include <vector>

#include "plan/conv_plan_halo.h"
#include "plan/conv_plan_igemm.h"
#include "plan/direct_cache.h"

namespace cnnkernels::plan {

// Limits of all instances; `x` is the whole problem. "" when there are none.
inline std::string conv_why_not(const ConvProblem& x) {
  auto text = [](const char* format, auto... values) {
    char buffer[160];
    std::snprintf(buffer, sizeof buffer, format, values...);
    return std::string(buffer);
  };
  const int lane = 16 / x.element_bytes();
  if (x.dtype == Dtype::f64) return "the kernels take bf16, fp16 and float32 (as TF32)";
  if (x.groups < 1 || x.c % x.groups || x.k % x.groups)
    return text("groups=%d must divide C=%d and K=%d", x.groups, x.c, x.k);
  if (x.groups > 8)
    return text("groups=%d: the kernels run one group after another, up to 8", x.groups);
  if (x.c / x.groups % lane || x.k / x.groups % lane)
    return text("C=%d and K=%d per group must be multiples of %d (TMA moves 16 bytes)",
                x.c / x.groups, x.k / x.groups, lane);
  if (x.p() < 1 || x.q() < 1) return "the filter exceeds the padded input";
  if (x.pixels() >= (int64_t{1} << 31) || x.n > (1 << 24)) return "more than 2^31 output pixels";
  if ((x.r - 1) * x.dilation_h > 255 || (x.s - 1) * x.dilation_w > 255)
    return "a dilated filter over 256 pixels";
  if (const char* error = map_error(im2col_map(x.group(), x.c, 128, 64))) return error;
  if (const char* error = map_error(weight_map(x.group(), 128, 128))) return error;
  if (x.two_outputs && (x.groups != 1 || x.residual || x.pool))
    return "two outputs go with neither groups nor a residual nor pooling";
  if (x.shortcut_c == 0) return "";
  const ConvProblem z = x.shortcut();
  if (x.groups != 1 || x.residual || x.pool)
    return "a projection shortcut goes with neither groups nor a residual nor pooling";
  if (z.c % lane) return text("the shortcut's C=%d must be a multiple of %d", z.c, lane);
  if (z.p() != x.p() || z.q() != x.q()) return "the shortcut's output size differs";
  if (const char* error = map_error(im2col_map(z, z.c, 128, 64))) return error;
  return "";
}

// `x`: one group. sms: multiprocessors.
inline ConvPlan plan_instance(const ConvProblem& x, const Instance& instance, int sms) {
  ConvPlan plan;
  plan.instance = &instance;
  if (instance.family == Family::igemm)
    plan_igemm(x, sms, plan);
  else
    plan_halo(x, sms, plan);
  return plan;
}

// Every instance's plan: measured ones by estimate, then those no GPU has run, unusable ones last.
inline std::vector<ConvPlan> plan_all(const ConvProblem& x, int sms) {
  std::vector<ConvPlan> plans;
  for (const Instance& instance : kInstances) plans.push_back(plan_instance(x, instance, sms));
  const auto rank = [](const ConvPlan& p) {
    return !p.why_not.empty() ? 2 : p.instance->measured ? 0 : 1;
  };
  std::stable_sort(plans.begin(), plans.end(), [&](const ConvPlan& a, const ConvPlan& b) {
    return rank(a) != rank(b) ? rank(a) < rank(b) : rank(a) < 2 && a.us < b.us;
  });
  return plans;
}

// The fastest measured instance by estimate; when none can run the problem, why_not says so.
inline ConvPlan choose_plan(const ConvProblem& x, int sms) {
  ConvPlan plan = plan_all(x, sms).front();
  if (!plan.instance->measured) plan.why_not = "no measured instance takes it";
  return plan;
}

// plan_instance, or choose_plan where instance is nullptr, kept per thread: making a plan takes
// longer than launching a kernel.
inline const ConvPlan& cached_plan(const ConvProblem& x, const Instance* instance, int sms) {
  using Key = std::tuple<ProblemKey, const Instance*, int>;
  static thread_local DirectCache<Key, ConvPlan, 64> cache;
  const ProblemKey problem = problem_key(x);
  return cache.get({problem, instance, sms}, hash_words(problem) ^ uintptr_t(instance), [&] {
    return instance ? plan_instance(x, *instance, sms) : choose_plan(x, sms);
  });
}

inline std::string reason(const ConvPlan& plan, int sms) {
  char text[256];
  std::snprintf(
      text, sizeof text,
      "%lld tiles of %d channels x %d pixels on %d multiprocessors (%.2f waves)%s, estimated "
      "%.1f us: %s",
      static_cast<long long>(plan.tiles()), plan.instance->channels,
      plan.instance->pixels *
          (plan.instance->channels == 64 && plan.instance->family != Family::halo_res ? 2 : 1),
      sms, static_cast<double>(plan.tiles()) / sms,
      plan.instance->pingpong ? ", epilogues under the next tile's sums" : "", plan.us,
      plan.instance->why);
  return text;
}

}  // namespace cnnkernels::plan
