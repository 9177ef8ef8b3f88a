#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/cpus.h"

namespace fs = std::filesystem;

namespace {

struct CgroupRoot {
  CgroupRoot() {
    char name[] = "/tmp/trt-moe-cgroup-XXXXXX";
    path = mkdtemp(name);
  }
  ~CgroupRoot() { fs::remove_all(path); }
  void write(const std::string& file, const std::string& text) const {
    fs::create_directories((path / file).parent_path());
    std::ofstream(path / file) << text;
  }
  fs::path path;
};

}  // namespace

TEST_CASE("a cgroup v2 quota is rounded up to whole CPUs") {
  const CgroupRoot root;
  root.write("box/cpu.max", "150000 100000");
  CHECK(trt_moe::cgroup_cpu_limit("0::/box\n", root.path) == 2);
}

TEST_CASE("a parent's tighter quota binds") {
  const CgroupRoot root;
  root.write("pod/cpu.max", "100000 100000");
  root.write("pod/box/cpu.max", "400000 100000");
  CHECK(trt_moe::cgroup_cpu_limit("0::/pod/box\n", root.path) == 1);
}

TEST_CASE("no quota is no limit") {
  const CgroupRoot root;
  root.write("box/cpu.max", "max 100000");
  CHECK(trt_moe::cgroup_cpu_limit("0::/box\n", root.path) == 0);
  CHECK(trt_moe::cgroup_cpu_limit("", root.path) == 0);
}

TEST_CASE("a cgroup v1 quota is read from the cpu controller") {
  const CgroupRoot root;
  root.write("cpu,cpuacct/box/cpu.cfs_quota_us", "300000");
  root.write("cpu,cpuacct/box/cpu.cfs_period_us", "100000");
  CHECK(trt_moe::cgroup_cpu_limit("7:memory:/box\n4:cpu,cpuacct:/box\n", root.path) == 3);
}

TEST_CASE("a cgroup v1 mount that lists its controllers in another order is found by its link") {
  const CgroupRoot root;
  root.write("cpu/box/cpu.cfs_quota_us", "100000");
  root.write("cpu/box/cpu.cfs_period_us", "100000");
  CHECK(trt_moe::cgroup_cpu_limit("4:cpuacct,cpu:/box\n", root.path) == 1);
}

TEST_CASE("inside a container the quota is at the mount itself") {
  const CgroupRoot root;
  root.write("cpu.max", "200000 100000");
  CHECK(trt_moe::cgroup_cpu_limit("0::/not/mounted/here\n", root.path) == 2);
}

TEST_CASE("this process may use at least one CPU") { CHECK(trt_moe::usable_cpus() >= 1); }
