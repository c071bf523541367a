// Composition of two packed displacements, and its adjoint.

template <bool Line>
void compose_plane(const float *__restrict outer, const float *__restrict inner, float *__restrict out, Size n, int z) {
  const long sy = n.y > 1 ? 4L * n.x : 0, sz = n.z > 1 ? 4L * n.x * n.y : 0;
  Cells c;
  for (int y = 0; y < n.y; ++y) {
    const long row = (static_cast<long>(z) * n.y + y) * n.x;
    for (int x = 0; x < n.x; x += Cells::run) {
      const int length = std::min(Cells::run, n.x - x);
      const float *u = inner + 4 * (row + x);
      float *o = out + 4 * (row + x);
      c.locate(n, u, length, x, y, z, 0.f);
      for (int i = 0; i < length; ++i) {
        const float *a = outer + 4L * c.at[i];
        const float *b = a + sz;
        const V8 fz = splat8(c.fz[i]);
        const V8 p00 = load_pair<Line>(a), p10 = load_pair<Line>(a + sy);
        const V8 p01 = load_pair<Line>(b), p11 = load_pair<Line>(b + sy);
        const V8 r0 = p00 + fz * (p01 - p00), r1 = p10 + fz * (p11 - p10);
        const V8 r = r0 + splat8(c.fy[i]) * (r1 - r0);
        const V4 low = lower(r);
        store4(o + 4 * i, load4(u + 4 * i) + low + splat(c.fx[i]) * (upper(r) - low));
      }
    }
  }
}

void compose(const float *outer, const float *inner, float *out, Size n, int threads) {
  parallel_for(n.z, threads, [&](int z) {
    if (n.x > 1) {
      compose_plane<true>(outer, inner, out, n, z);
    } else {
      compose_plane<false>(outer, inner, out, n, z);
    }
  });
}

// One plane of the adjoint: the gradient by the inner field goes to `grad_inner`, that by the outer one is added to
// `base`, which stands for the first point of the grid, unless that is null.
template <bool Line, bool Scatter>
void compose_adjoint_plane(const float *__restrict outer, const float *__restrict inner, const float *__restrict grad,
                           float *__restrict base, float *__restrict grad_inner, Size n, int z, float lowest) {
  const long sx = n.x > 1 ? 4 : 0, sy = n.y > 1 ? 4L * n.x : 0, sz = n.z > 1 ? 4L * n.x * n.y : 0;
  // Nothing is inside in the lane that pads.
  const V4 top = {float(n.x - 1), float(n.y - 1), float(n.z - 1), -1.f};
  Cells c;
  for (int y = 0; y < n.y; ++y) {
    const long row = (static_cast<long>(z) * n.y + y) * n.x;
    for (int x = 0; x < n.x; x += Cells::run) {
      const int length = std::min(Cells::run, n.x - x);
      const float *u = inner + 4 * (row + x);
      c.locate(n, u, length, x, y, z, lowest);
      V4 here = {float(x), float(y), float(z), 0.f};
      for (int i = 0; i < length; ++i) {
        const long at = 4L * c.at[i];
        const float *a = outer + at;
        const float *b = a + sz;
        const V4 g = load4(grad + 4 * (row + x + i)) * V4{1.f, 1.f, 1.f, 0.f};
        const V4 fx = splat(c.fx[i]);
        const V8 fy = splat8(c.fy[i]), fz = splat8(c.fz[i]);
        const V8 p00 = load_pair<Line>(a), p10 = load_pair<Line>(a + sy);
        const V8 p01 = load_pair<Line>(b), p11 = load_pair<Line>(b + sy);
        const V8 z0 = p01 - p00, z1 = p11 - p10;
        const V8 r0 = p00 + fz * z0, r1 = p10 + fz * z1, dy = r1 - r0;
        const V8 r = r0 + fy * dy, dz = z0 + fy * (z1 - z0);
        // g, shared out to the lower and the upper neighbour along x.
        const V4 g_high = g * fx, g_low = g - g_high;
        const V8 shares = pair(g_low, g_high);
        const V8 ty = dy * shares, tz = dz * shares;
        const V4 bx = (upper(r) - lower(r)) * g, by = lower(ty) + upper(ty), bz = lower(tz) + upper(tz);
        // The sums of the lanes of bx, by and bz, side by side.
        const V4 sxy = shuffle<0, 4, 1, 5>(bx, by) + shuffle<2, 6, 3, 7>(bx, by);
        const V4 szz = bz + shuffle<2, 3, 0, 1>(bz, bz);
        const V4 back = shuffle<0, 1, 4, 4>(sxy, szz) + shuffle<2, 3, 5, 5>(sxy, szz);
        const V4 q = here + load4(u + 4 * i);
        // Beyond the edge the field is constant.
        const I4 inside = (q >= splat(0.f)) & (q <= top);
        store4(grad_inner + 4 * (row + x + i), g + reinterpret_cast<V4>(reinterpret_cast<I4>(back) & inside));
        here += V4{1.f, 0.f, 0.f, 0.f};
        if constexpr (!Scatter) continue;
        const V8 s1 = shares * fz, s0 = shares - s1;
        const V8 s10 = s0 * fy, s00 = s0 - s10, s11 = s1 * fy, s01 = s1 - s11;
        float *o = base + at;
        store4(o, load4(o) + lower(s00));
        store4(o + sx, load4(o + sx) + upper(s00));
        store4(o + sy, load4(o + sy) + lower(s10));
        store4(o + sy + sx, load4(o + sy + sx) + upper(s10));
        o += sz;
        store4(o, load4(o) + lower(s01));
        store4(o + sx, load4(o + sx) + upper(s01));
        store4(o + sy, load4(o + sy) + lower(s11));
        store4(o + sy + sx, load4(o + sy + sx) + upper(s11));
      }
    }
  }
}

void compose_adjoint(const float *outer, const float *inner, const float *grad, float *grad_outer, float *grad_inner,
                     Size n, int threads) {
  const bool together = grad_outer == grad_inner;
  const long plane = 4L * n.x * n.y;
  if (grad_outer == nullptr) {  // only the inner field is wanted: nothing to scatter
    parallel_for(n.z, threads, [&](int z) {
      const auto adjoint = n.x > 1 ? compose_adjoint_plane<true, false> : compose_adjoint_plane<false, false>;
      adjoint(outer, inner, grad, nullptr, grad_inner, n, z, 0.f);
    });
    return;
  }
  // Each slab of planes scatters into memory of its own, which covers only the planes it can reach; the slabs are
  // then added in order. Their number depends on the grid alone.
  const int slabs = std::min(8, n.z);
  std::vector<int> low(slabs), high(slabs);
  std::vector<long> offset(slabs + 1, 0);
  const auto first_plane = [&](int s) { return static_cast<int>(static_cast<long>(n.z) * s / slabs); };
  parallel_for(slabs, threads, [&](int s) {
    float least = float(n.z - 1), most = 0.f;
    for (int z = first_plane(s); z < first_plane(s + 1); ++z) {
      V4 smallest = splat(1e30f), largest = splat(-1e30f);
      for (long i = 0; i < static_cast<long>(n.x) * n.y; ++i) {
        const V4 u = load4(inner + z * plane + 4 * i);
        smallest = u < smallest ? u : smallest;
        largest = u > largest ? u : largest;
      }
      least = std::min(least, float(z) + smallest[2]);
      most = std::max(most, float(z) + largest[2]);
    }
    const int lo = std::max(0, std::min(int(std::max(least, 0.f)), n.z - 2));
    low[s] = lo;
    high[s] = std::min(n.z, std::max(int(std::min(most, float(n.z - 1))), lo) + 2);
  });
  for (int s = 0; s < slabs; ++s) offset[s + 1] = offset[s] + (high[s] - low[s]) * plane;
  // Kept by the calling thread: allocating it anew for every call costs page faults.
  thread_local std::vector<float> kept;
  if (static_cast<long>(kept.size()) < offset[slabs]) kept.resize(offset[slabs]);
  float *const reach = kept.data();
  parallel_for(slabs, threads, [&](int s) {
    std::fill(reach + offset[s], reach + offset[s + 1], 0.f);
    float *base = reach + offset[s] - low[s] * plane;
    for (int z = first_plane(s); z < first_plane(s + 1); ++z) {
      if (n.x > 1) {
        compose_adjoint_plane<true, true>(outer, inner, grad, base, grad_inner, n, z, float(low[s]));
      } else {
        compose_adjoint_plane<false, true>(outer, inner, grad, base, grad_inner, n, z, float(low[s]));
      }
    }
  });
  parallel_for(n.z, threads, [&](int z) {
    float *__restrict out = grad_outer + z * plane;
    bool empty = !together;
    for (int s = 0; s < slabs; ++s) {
      if (z < low[s] || z >= high[s]) continue;
      const float *__restrict add = reach + offset[s] + (z - low[s]) * plane;
      if (empty) {
        std::memcpy(out, add, sizeof(float) * plane);
      } else {
        for (long i = 0; i < plane; ++i) out[i] += add[i];
      }
      empty = false;
    }
    if (empty) std::fill(out, out + plane, 0.f);
  });
}
