#include "core/cpus.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

namespace trt_moe {

namespace {

namespace fs = std::filesystem;

std::size_t cpus_from(double quota_us, double period_us) {
  if (quota_us <= 0 || period_us <= 0) return 0;
  return std::max<std::size_t>(1, static_cast<std::size_t>(std::ceil(quota_us / period_us)));
}

std::size_t limit_in(const fs::path& folder) {
  if (std::ifstream v2(folder / "cpu.max"); v2) {
    std::string quota;
    double period = 0;
    if (v2 >> quota >> period && quota != "max") return cpus_from(std::strtod(quota.c_str(), nullptr), period);
    return 0;
  }
  double quota = 0;
  double period = 0;
  std::ifstream(folder / "cpu.cfs_quota_us") >> quota;
  std::ifstream(folder / "cpu.cfs_period_us") >> period;
  return cpus_from(quota, period);
}

}  // namespace

std::size_t cgroup_cpu_limit(const std::string& proc_self_cgroup, const fs::path& cgroup_root) {
  std::size_t limit = 0;
  std::istringstream lines(proc_self_cgroup);
  for (std::string line; std::getline(lines, line);) {
    // "0::/path" is cgroup v2; "4:cpu,cpuacct:/path" is v1.
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v1_cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (!controllers.empty() && !v1_cpu) continue;
    // v1 mounts are named after their controllers, in an order of the host's own, with a link for each one.
    const fs::path named = cgroup_root / controllers;
    const fs::path mount = controllers.empty() ? cgroup_root : fs::exists(named) ? named : cgroup_root / "cpu";
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    // A parent's quota binds its children, and inside a container the group's own path may not be mounted.
    for (;; group = group.parent_path()) {
      if (const std::size_t here = limit_in(mount / group); here != 0)
        limit = limit == 0 ? here : std::min(limit, here);
      if (group.empty()) break;
    }
  }
  return limit;
}

std::size_t cpu_quota() {
  std::ifstream file("/proc/self/cgroup");
  std::stringstream text;
  text << file.rdbuf();
  return cgroup_cpu_limit(text.str(), "/sys/fs/cgroup");
}

std::size_t usable_cpus() {
  std::size_t cpus = std::max(1U, std::thread::hardware_concurrency());
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cpus = static_cast<std::size_t>(std::max(1, CPU_COUNT(&mask)));
  const std::size_t quota = cpu_quota();
  return quota == 0 ? cpus : std::min(cpus, quota);
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name") && !line.starts_with("Model")) continue;
    const auto colon = line.find(':');
    if (colon != std::string::npos && colon + 2 < line.size()) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

}  // namespace trt_moe
