// A block of a GPU on one CPU thread: every thread of it is a fiber, and a scheduler with a seed
// decides who goes on. What the hardware does on its own (copies, products) waits until nobody
// else can run: as late as it may happen.
#pragma once

#include "kernel.hpp"
#include "switch.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "switch.hpp"

namespace unspool::host {

// What a kernel does wrong: ends the run, and its text reaches the caller.
struct Fault : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Clock = std::vector<std::uint32_t>;  // per thread, then per agent: how far it has been seen

inline void join(Clock& to, const Clock& from) {
    if (to.size() < from.size()) to.resize(from.size(), 0);
    for (std::size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

inline void join(std::map<int, Clock>& to, const std::map<int, Clock>& from) {
    for (const auto& [block, clock] : from) join(to[block], clock);
}

struct Fiber {
    Stack stack;
    int index = 0;
    bool ready = true, done = false;
    const char* waits_for = "";
    int waits_at = 0;  // a place, or an offset in shared memory
    Clock clock;
    Clock fenced;                           // what of it other blocks will see too (global.hpp)
    std::map<int, Clock> gained, acquired;  // of other blocks: learnt, and fenced since
};

// Threads that do something together: the last to arrive does it for all.
struct Meeting {
    const char* what = nullptr;
    int count = 0;
    std::vector<std::pair<int, void*>> arrived;  // thread, its arguments
};

// Something that the hardware does later; in order within a queue.
using Deed = std::function<void()>;

struct Allocation {
    std::uintptr_t first, end;
    std::string name;
};

constexpr int warp_lanes = 32, group_threads = 128;

// Places where threads meet: named barriers 1 to 15, the block, each warp, each warpgroup.
constexpr int whole_block = 0, first_warp = 16, first_group = 64, all_places = 80;

constexpr const char* barrier_phase = "the phase of a barrier";
std::string state_of_barrier(int offset);  // copies.hpp

struct Engine {
    int threads = 0, block = 0, block_y = 0, blocks = 0, agents = 0;
    std::vector<Fiber> fibers;
    Stack scheduler;
    Fiber* current = nullptr;
    std::string fault;
    std::mt19937 random;
    std::vector<Meeting> meetings;  // by place
    std::vector<std::deque<Deed>> queues;  // of the hardware
    std::vector<Allocation> allocations;
    std::function<void()> body;

    Clock& clock() { return current->clock; }
    std::uint32_t now() { return clock()[current->index]; }
    void tick() { ++clock()[current->index]; }

    // The clock of something that acts on its own: a copy engine, the matrix unit.
    int new_agent() { return threads + agents++; }

    std::string where() const {
        const std::string at = "block " + std::to_string(block) + "," + std::to_string(block_y);
        if (!current) return at;
        return at + ", thread " + std::to_string(current->index) + " (warp " +
               std::to_string(current->index / warp_lanes) + ", lane " +
               std::to_string(current->index % warp_lanes) + ")";
    }
    [[noreturn]] void fail(const std::string& what) const { throw Fault(where() + ": " + what); }

    void block_on(const char* what, int place) {
        current->ready = false, current->waits_for = what, current->waits_at = place;
        current->stack.switch_to(scheduler);
        if (!fault.empty()) throw Fault("");  // another thread failed: unwind
    }
    void wake(int thread) { fibers[thread].ready = true; }

    // Waits until `count` threads have come with the same purpose; the last acts for all.
    template <class Act>
    void meet(int place, const char* what, int count, void* mine, const Act& act) {
        Meeting& meeting = meetings[place];
        if (meeting.arrived.empty()) meeting.what = what, meeting.count = count;
        if (std::strcmp(meeting.what, what) != 0)
            fail(std::string(what) + " in " + name_of(place) + ", where " + who(meeting) +
                 " came to " + meeting.what);
        if (meeting.count != count)
            fail(std::string(what) + " of " + std::to_string(count) + " threads in " +
                 name_of(place) + ", where others expect " + std::to_string(meeting.count));
        meeting.arrived.emplace_back(current->index, mine);
        if (int(meeting.arrived.size()) < count) {
            block_on(what, place);
            return;
        }
        Meeting together;
        std::swap(together, meeting);
        std::sort(together.arrived.begin(), together.arrived.end());
        act(together);
        for (const auto& [thread, _] : together.arrived) wake(thread);
    }

    // Everybody there has seen what everybody did before.
    void agree(const Meeting& meeting) {
        Clock all, fenced;
        std::map<int, Clock> gained;
        for (const auto& [thread, _] : meeting.arrived) {
            join(all, fibers[thread].clock);
            join(fenced, fibers[thread].fenced);
            join(gained, fibers[thread].gained);
        }
        for (const auto& [thread, _] : meeting.arrived) {
            Fiber& fiber = fibers[thread];
            fiber.clock = all, ++fiber.clock[thread];
            fiber.fenced = fenced, fiber.gained = gained;
        }
    }

    int warp_place() const { return first_warp + current->index / warp_lanes; }
    int group_place() const { return first_group + current->index / group_threads; }

    static std::string name_of(int place) {
        if (place == whole_block) return "the block";
        if (place >= first_group) return "warpgroup " + std::to_string(place - first_group);
        if (place >= first_warp) return "warp " + std::to_string(place - first_warp);
        return "named barrier " + std::to_string(place);
    }

    static std::string who(const Meeting& meeting) {
        const int first = meeting.arrived.front().first;
        return "thread " + std::to_string(first) + " (lane " + std::to_string(first % warp_lanes) +
               ")";
    }

    // Who waits for what, threads with the same wait in one range.
    std::string waiting() const {
        std::string text;
        for (int first = 0; first < threads;) {
            const Fiber& fiber = fibers[first];
            int last = first;
            while (last + 1 < threads && fibers[last + 1].waits_at == fiber.waits_at &&
                   fibers[last + 1].done == fiber.done &&
                   std::strcmp(fibers[last + 1].waits_for, fiber.waits_for) == 0)
                ++last;
            if (!fiber.done)
                text += " threads " + std::to_string(first) + "-" + std::to_string(last) +
                        " wait for " + fiber.waits_for + place_text(fiber) + ";";
            first = last + 1;
        }
        return text;
    }

    static std::string place_text(const Fiber& fiber) {
        if (std::strcmp(fiber.waits_for, barrier_phase) == 0)
            return state_of_barrier(fiber.waits_at);
        const std::string name = name_of(fiber.waits_at);
        return name == fiber.waits_for ? "" : " of " + name;
    }

    bool hardware_acts() {
        std::vector<std::size_t> able;
        for (std::size_t i = 0; i < queues.size(); ++i)
            if (!queues[i].empty()) able.push_back(i);
        if (able.empty()) return false;
        auto& queue = queues[able[random() % able.size()]];
        const Deed deed = std::move(queue.front());
        queue.pop_front();
        deed();
        return true;
    }

    void run_block(int count, const std::function<void()>& kernel);
};

inline Engine*& engine() {
    static Engine* the = nullptr;
    return the;
}

inline void fiber_main() {
    Engine& all = *engine();
    Fiber& me = *all.current;
    try {
        all.body();
    } catch (const Fault& fault) {
        if (all.fault.empty()) all.fault = fault.what();
    } catch (const std::exception& other) {
        if (all.fault.empty()) all.fault = std::string("the simulation failed: ") + other.what();
    }
    me.done = true, me.ready = false;
    me.stack.switch_to(all.scheduler);
}

inline void start(Fiber& fiber, int index, int clocks) {
    fiber.index = index, fiber.ready = true, fiber.done = false;
    fiber.clock.assign(clocks, 0);
    fiber.fenced.clear(), fiber.gained.clear(), fiber.acquired.clear();
    fiber.clock[index] = 1;
    fiber.stack.prepare(fiber_main);
}

inline void Engine::run_block(int count, const std::function<void()>& kernel) {
    threads = count, agents = 0, body = kernel;
    meetings.assign(all_places, Meeting{});
    queues.clear(), fault.clear();
    fibers.resize(count);
    for (int i = 0; i < count; ++i) start(fibers[i], i, count);
    std::vector<int> ready;
    for (;;) {
        ready.clear();
        bool all_done = true;
        for (Fiber& fiber : fibers) {
            all_done &= fiber.done;
            // a fault anywhere wakes all who wait, so that their stacks unwind
            if (fiber.ready || (!fault.empty() && !fiber.done)) ready.push_back(fiber.index);
        }
        if (all_done) break;
        if (ready.empty()) {
            current = nullptr;
            try {
                if (hardware_acts()) continue;
                fail("deadlock:" + waiting());
            } catch (const Fault& found) {
                fault = found.what();
            }
            continue;
        }
        std::shuffle(ready.begin(), ready.end(), random);
        for (int index : ready) {
            current = &fibers[index];
            if (current->done) continue;
            scheduler.switch_to(current->stack);
        }
    }
    current = nullptr;
    if (!fault.empty()) throw Fault(fault);
}

}  // namespace unspool::host
