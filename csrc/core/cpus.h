#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace trt_moe {

// CPUs this process may really use: the smaller of its affinity mask and its cgroup's quota (v1 or v2), at least 1.
std::size_t usable_cpus();

// The quota part alone, rounded up; 0 where there is no limit.
std::size_t cpu_quota();

// The same from a /proc/self/cgroup text and the folder that cgroups are mounted on.
std::size_t cgroup_cpu_limit(const std::string& proc_self_cgroup, const std::filesystem::path& cgroup_root);

// "AMD EPYC 9R14" and the like, from /proc/cpuinfo; "unknown CPU" where it does not say.
std::string cpu_name();

}  // namespace trt_moe
