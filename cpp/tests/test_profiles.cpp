// The optimization profile of a batch is the one that the Python runner chooses.
#include <doctest/doctest.h>

#include "profiles.h"

using dyvit::place;

TEST_CASE("the profile tuned for the nearest batch is chosen among those that take it") {
  std::vector<dyvit::Profile> const profiles = {{1, 1, 4}, {1, 8, 32}};
  CHECK(place(1, profiles).profile == 0);
  CHECK(place(4, profiles).profile == 0);
  CHECK(place(8, profiles).profile == 1);
  CHECK(place(32, profiles).padded == 32);
  CHECK(dyvit::largest_batch(profiles) == 32);
}

TEST_CASE("a batch between the profiles is filled up to the next") {
  std::vector<dyvit::Profile> const profiles = {{1, 1, 1}, {8, 16, 32}};
  CHECK(place(1, profiles).padded == 1);
  CHECK(place(3, profiles).padded == 8);
  CHECK(place(3, profiles).profile == 1);
  CHECK(place(20, profiles).padded == 20);
}
