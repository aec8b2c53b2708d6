#include "cpu/weight.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "core/checked.h"
#include "cpu/patterns.h"

namespace subbit {
namespace {

constexpr int kOutputsPerVector = 64;

// Sorts the codewords into runs. Returns the row of each codeword.
std::vector<int> sort_into_runs(const DecodedWeight& weight, int pixels, RowsForm& form) {
  const int codewords = static_cast<int>(weight.codebook.size());
  const int parts = weight.unit == Unit::k3x3 ? 3 : 2;
  const int patterns = weight.unit == Unit::k3x3 ? kPatternsOfRow : kPatternsOfHalf;
  const auto part = [&](int k, int i) { return part_of(weight.codebook[k], weight.unit, i); };
  const auto run_of = [&](int k) { return 2 * part(k, parts - 1).pattern + part(k, parts - 1).minus; };
  std::vector<int> order(codewords);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return run_of(a) < run_of(b); });

  std::vector<int> row_of(codewords);
  for (int row = 0; row < codewords; ++row) {
    const int k = order[row];
    row_of[k] = row;
    const auto offset = [&](int i) {
      const SignedPattern p = part(k, i);
      return static_cast<std::uint16_t>((2 * (i * patterns + p.pattern) + p.minus) * pixels);
    };
    form.terms.push_back({offset(0), offset(1)});
    for (int run = run_of(k); run < kMaxRuns; ++run) form.run_end[run] = static_cast<std::uint16_t>(row + 1);
  }
  return row_of;
}

RowsForm make_rows_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  RowsForm form;
  const std::vector<int> row_of = sort_into_runs(weight, plan.kernel->pixels, form);

  const int row_bytes = plan.kernel->pixels * (plan.kernel->activations == Activations::kBinary ? 1 : 4);
  const std::int64_t block = std::min<std::int64_t>(plan.units_per_block, weight.units);
  std::vector<Codeword> codewords(row_of.size());
  for (std::size_t k = 0; k < row_of.size(); ++k) codewords[row_of[k]] = weight.codebook[k];
  form.respond = RespondCode::make(weight.unit, codewords, *plan.kernel, block * row_bytes);
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
            *out = static_cast<std::uint16_t>((row_of[k] * block + u) * row_bytes);
          }
        }
      }
    }
  }
  return form;
}

TablesForm make_tables_form(const DecodedWeight& weight, const Plan& plan, std::int64_t groups) {
  TablesForm form;
  form.slot = table_slot(static_cast<int>(weight.codebook.size()));
  const int taps = unit_taps(weight.unit);
  form.responses = AlignedBuffer(static_cast<std::size_t>(kCodeParts) * kCodes * form.slot);
  for (int part = 0; part < kCodeParts; ++part) {
    for (int code = 0; code < kCodes; ++code) {
      for (std::size_t k = 0; k < weight.codebook.size(); ++k) {
        int response = 0, digits = code;
        for (int tap = part * kTapsOfCode; tap < std::min(taps, (part + 1) * kTapsOfCode); ++tap, digits /= 3) {
          const int value = digits % 3 - 1;
          response += 1 + (weight.codebook[k] >> tap & 1 ? value : -value);  // 1: the bias
        }
        form.responses.data()[(part * kCodes + code) * form.slot + k] = static_cast<std::byte>(response);
      }
    }
  }

  const int slots = 64 / form.slot;
  const std::int64_t outputs = weight.out_channels / groups;
  const std::int64_t padded = padded_outputs(*plan.kernel, outputs);
  std::int64_t units_in_registers = 0;
  for (std::int64_t first = 0; first < weight.units; first += plan.units_per_block) {
    units_in_registers += round_up(std::min<std::int64_t>(plan.units_per_block, weight.units - first), slots);
  }
  form.positions = AlignedBuffer(checked_product({groups, padded, units_in_registers}, "prepared weight"));
  std::byte* out = form.positions.data();
  for (std::int64_t group = 0; group < groups; ++group) {
    for (std::int64_t first = 0; first < weight.units; first += plan.units_per_block) {
      const std::int64_t units = std::min<std::int64_t>(plan.units_per_block, weight.units - first);
      for (std::int64_t o = 0; o < padded; o += kOutputsPerVector) {
        for (std::int64_t u = 0; u < round_up(units, slots); ++u) {
          for (int lane = 0; lane < kOutputsPerVector; ++lane, ++out) {
            // Even bytes are widened to channels 0..31, odd bytes to 32..63 (gather_avx512vbmi.cpp).
            const std::int64_t channel = o + lane / 2 + (lane % 2) * 32;
            int position = static_cast<int>(u % slots) * form.slot;
            if (u < units && channel < outputs) {
              position += weight.indices[(group * outputs + channel) * weight.units + first + u];
            }
            *out = static_cast<std::byte>(position);
          }
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
  form.weights = AlignedBuffer(checked_product({groups, padded, taps, words, 8}, "prepared weight"));
  auto* out = reinterpret_cast<std::uint64_t*>(form.weights.data());
  for (std::int64_t o = 0; o < weight.out_channels; ++o) {
    const std::int64_t row = o / outputs * padded + o % outputs;
    for (std::int64_t c = 0; c < channels; ++c) {
      const Codeword codeword = weight.codebook[weight.indices[o * weight.units + c / unit]];
      for (int t = 0; t < taps; ++t) {
        const std::uint64_t bit = codeword >> (c % unit + t) & 1;  // one of the two is always 0
        out[((row / 8 * taps + t) * words + c / 64) * 8 + row % 8] |= bit << (c % 64);
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
    case Layout::kTables:
      return round_up(outputs, kOutputsPerVector);
    case Layout::kBits:
      return round_up(outputs, kOutputsPerMatch);
  }
  return outputs;
}

const RowsForm& Weight::rows_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(rows_, {plan.kernel, groups}, [&] { return make_rows_form(decoded_, plan, groups); });
}

const TablesForm& Weight::tables_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(tables_, {plan.kernel, groups}, [&] { return make_tables_form(decoded_, plan, groups); });
}

const BitsForm& Weight::bits_form(const Plan& plan, std::int64_t groups) const {
  return find_or_make(bits_, {plan.kernel, groups}, [&] { return make_bits_form(decoded_, plan, groups); });
}

}  // namespace subbit
