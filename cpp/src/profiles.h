// Optimization profiles: the batches that an engine supports, and the choice of a profile. Independent of TensorRT.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace dyvit {

struct Profile {
  // In images.
  std::int64_t min, opt, max;
};

struct Place {
  // Index of the profile.
  int profile;
  // Number of images to run, at least the batch.
  std::int64_t padded;
};

inline std::int64_t largest_batch(std::vector<Profile> const& profiles) {
  std::int64_t largest = 0;
  for (Profile const& profile : profiles) largest = std::max(largest, profile.max);
  return largest;
}

// The same choice as in the Python runner: among the profiles that take the batch, the one tuned for the nearest size. A batch
// that no profile takes is padded to the next size that one takes. The batch must be at most largest_batch(profiles).
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
