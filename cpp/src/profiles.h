// Optimization profiles: which batches an engine takes, and how a batch meets one. No TensorRT in here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace dyvit {

struct Profile {
  std::int64_t min, opt, max;           // images
};

struct Place {
  int profile;                          // number of the profile
  std::int64_t padded;                  // images to run, at least the batch
};

inline std::int64_t largest_batch(std::vector<Profile> const& profiles) {
  std::int64_t largest = 0;
  for (Profile const& profile : profiles) largest = std::max(largest, profile.max);
  return largest;
}

// As the Python runner chooses: among the profiles that take the batch the one tuned for the nearest size. A batch that
// none takes is filled up to the next size that one does; it is at most largest_batch(profiles).
inline Place place(std::int64_t batch, std::vector<Profile> const& profiles) {
  Place best{0, largest_batch(profiles)};
  for (Profile const& profile : profiles)
    if (profile.max >= batch) best.padded = std::min(best.padded, std::max(batch, profile.min));
  std::int64_t nearest = -1;
  for (std::size_t i = 0; i < profiles.size(); ++i) {
    std::int64_t const distance = std::abs(profiles[i].opt - best.padded);
    bool const takes = profiles[i].min <= best.padded && best.padded <= profiles[i].max;
    if (!takes || (nearest >= 0 && distance >= nearest)) continue;
    nearest = distance;
    best.profile = static_cast<int>(i);
  }
  return best;
}

}  // namespace dyvit
