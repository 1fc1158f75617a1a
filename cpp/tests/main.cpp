#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "reference.h"

int main(int count, char** arguments) {
  if (!std::filesystem::exists(reference::folder / "manifest.json")) {
    std::puts("skipped: there is no reference data; see the test 'reference' for the reason.");
    return reference::skipped;
  }
  return doctest::Context(count, arguments).run();
}
