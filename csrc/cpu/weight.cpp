#include "cpu/weight.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "core/checked.h"
#include "cpu/families/rows/patterns.h"

namespace subbit {
namespace {

constexpr int kOutputsPerVector = 64;

// Where the signed sums of a codeword's parts are.
RowTerms terms_of(Codeword codeword, Unit unit, int pixels) {
  const int patterns = unit == Unit::k3x3 ? kPatternsOfRow : kPatternsOfHalf;
  RowTerms terms{};
  for (int i = 0; i < (unit == Unit::k3x3 ? 3 : 2); ++i) {
    const SignedPattern part = part_of(codeword, unit, i);
    terms.part[i] = static_cast<std::uint16_t>((2 * (i * patterns + part.pattern) + part.minus) * pixels);
  }
  return terms;
}

RowsForm make_rows_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  RowsForm form;
  for (const Codeword k : weight.codebook) form.terms.push_back(terms_of(k, weight.unit, plan.kernel->pixels));
  const std::int64_t row_bytes = plan.kernel->pixels * plan.kernel->element_bytes();
  const std::int64_t block = std::min<std::int64_t>(plan.units_per_block, weight.units);
  form.respond = RespondCode::make(weight.unit, weight.codebook, *plan.kernel, block * row_bytes);
  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = padded_outputs(*plan.kernel, outputs);
  form.offsets.resize(checked_product({groups, padded, weight.units}, "prepared weight"), 0);
  std::uint16_t* out = form.offsets.data();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t first = 0; first < weight.units; first += plan.units_per_block) {
      const std::int64_t units = std::min<std::int64_t>(plan.units_per_block, weight.units - first);
      for (std::int64_t o = 0; o < padded; o += kOutputsPerStep) {
        for (std::int64_t u = 0; u < units; ++u) {
          for (int i = 0; i < kOutputsPerStep; ++i, ++out) {
            if (o + i >= outputs) continue;
            const int k = weight.indices[(group * outputs + o + i) * weight.units + first + u];
            *out = static_cast<std::uint16_t>((k * block + u) * row_bytes);
          }
        }
      }
    }
  }
  return form;
}

PatchesForm make_patches_form(const DecodedWeight& weight, std::int64_t groups) {
  PatchesForm form;
  form.slot = patch_slot(static_cast<int>(weight.codebook.size()));
  const int taps = unit_taps(weight.unit);
  const std::vector<std::uint16_t> places = PatchMap::places(weight.unit);
  form.responses = AlignedBuffer((places.size() << taps) * static_cast<std::size_t>(form.slot));
  std::byte* row = form.responses.data();
  for (const std::uint16_t inside : places) {
    for (int patch = 0; patch < 1 << taps; ++patch, row += form.slot) {
      for (std::size_t k = 0; k < weight.codebook.size(); ++k) {
        row[k] = static_cast<std::byte>(__builtin_popcount(inside & ~(patch ^ weight.codebook[k])));
      }
    }
  }

  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = round_up(outputs, kOutputsPerVector);
  form.positions = AlignedBuffer(checked_product({groups, padded, weight.units}, "prepared weight"));
  std::byte* out = form.positions.data();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t o = 0; o < padded; o += kOutputsPerVector) {
      for (std::int64_t u = 0; u < weight.units; ++u) {
        for (int lane = 0; lane < kOutputsPerVector; ++lane, ++out) {
          // Even bytes are widened to channels 0..31, odd bytes to 32..63 (patches_avx512vbmi.cpp).
          const std::int64_t channel = o + lane / 2 + (lane % 2) * 32;
          if (channel >= outputs) continue;
          *out = static_cast<std::byte>(weight.indices[(group * outputs + channel) * weight.units + u]);
        }
      }
    }
  }
  return form;
}

BitsForm make_bits_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  const int unit = unit_channels(weight.unit), taps = kernel_taps(weight.unit);
  const std::int64_t channels = weight.units * unit, words = ceil_div(channels, 64);
  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = padded_outputs(*plan.kernel, outputs);
  BitsForm form;
  form.words = static_cast<int>(words);
  form.halves = static_cast<int>(ceil_div(channels, 32));
  const bool by_bytes = plan.kernel->bits.code != nullptr;
  form.group_bytes = checked_product({padded, taps, by_bytes ? form.halves * 4 : words * 8}, "prepared weight");
  form.weights = AlignedBuffer(checked_product({groups, form.group_bytes}, "prepared weight"));
  std::byte* out = form.weights.data();
  const auto byte_of = [&](std::int64_t row, int tap, std::int64_t byte) {  // eight channels are a byte
    if (!by_bytes) return ((row / 8 * taps + tap) * words + byte / 8) * 64 + row % 8 * 8 + byte % 8;
    const std::int64_t lane = row % 16 * 2 + row / 16 % 2;
    return ((row / 32 * taps + tap) * form.halves * 4 + byte) * 32 + lane;
  };
  for (std::int64_t o = 0; o < weight.out_channels; ++o) {
    const std::int64_t row = o / outputs * padded + o % outputs;
    for (std::int64_t c = 0; c < channels; ++c) {
      const Codeword codeword = weight.codebook[weight.indices[o * weight.units + c / unit]];
      for (int t = 0; t < taps; ++t) {
        const int bit = codeword >> (c % unit + t) & 1;  // one of the two is always 0
        out[byte_of(row, t, c / 8)] |= static_cast<std::byte>(bit << (c % 8));
      }
    }
  }
  return form;
}

// Guards the forms of all weights. Held while the process forks, so that a child never inherits it locked by a thread
// that it does not have.
std::mutex forms_mutex;

const int kHeldAcrossFork =
    pthread_atfork([] { forms_mutex.lock(); }, [] { forms_mutex.unlock(); }, [] { forms_mutex.unlock(); });

// The form for a key, made if there is none yet.
template <class Forms, class Make>
const auto& find_or_make(Forms& forms, const typename Forms::key_type& key, const Make& make) {
  using Form = typename Forms::mapped_type::element_type;
  const std::lock_guard<std::mutex> lock(forms_mutex);
  auto& form = forms[key];
  if (!form) form = std::make_unique<Form>(make());
  return *form;
}

}  // namespace

std::int64_t padded_outputs(const Kernel& kernel, std::int64_t outputs) {
  switch (kernel.layout) {
    case Layout::kRows:
      return round_up(outputs, kOutputsPerStep);
    case Layout::kPatches:
      return round_up(outputs, kOutputsPerVector);
    case Layout::kBits:
      return round_up(outputs, kOutputsPerMatch);
  }
  return outputs;
}

const RowsForm& Weight::rows_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(rows_, {plan.kernel, groups}, [&] { return make_rows_form(decoded_, plan, groups); });
}

const PatchesForm& Weight::patches_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(patches_, {plan.kernel, groups}, [&] { return make_patches_form(decoded_, groups); });
}

const BitsForm& Weight::bits_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(bits_, {plan.kernel, groups}, [&] { return make_bits_form(decoded_, plan, groups); });
}

std::shared_ptr<const PatchMap> Weight::patch_map(const ConvProblem& params, int code_unit) const {
  constexpr std::size_t kMostSizes = 8;
  const PatchMapKey key = patch_map_key(params);
  const std::lock_guard<std::mutex> lock(forms_mutex);
  const auto found = patch_maps_.find(key);
  if (found != patch_maps_.end()) return found->second;
  if (patch_maps_.size() >= kMostSizes) patch_maps_.clear();
  return patch_maps_[key] = std::make_shared<const PatchMap>(params, code_unit);
}

}  // namespace subbit
