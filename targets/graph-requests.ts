import type { GraphRequest } from '../calibration/quantize-decoder.ts';
import { NpucError } from '../compiler/errors.ts';
import type { IoContract } from '../passes/io-contract.ts';

/** The sizes that a decoder is compiled for: a graph for every pair of them. */
export interface ShapeRequest {
  /** New tokens per prefill run; a decode graph of 1 token is always made. */
  readonly tokens: readonly number[];
  /** Whole contexts that a graph sees, at least one. */
  readonly caches: readonly number[];
}

/** The whole context of a decoder: sessions move to it from the smaller ones. */
export function largestCache({ caches }: Pick<ShapeRequest, 'caches'>): number {
  return Math.max(...caches);
}

/** @throws IM410 naming every pair whose tokens leave no room for a past */
export function checkShapes({ tokens, caches }: ShapeRequest): void {
  const pairs = [...new Set([...tokens, 1])].flatMap((size) =>
    [...new Set(caches)].filter((cache) => size >= cache).map((cache) => `--cache ${cache} with --tokens ${size}`),
  );
  if (pairs.length === 0) return;
  throw new NpucError('IM410', {
    message: `the cache must be larger than the tokens: not so ${pairs.join(', ')}`,
    hint: 'the cache is the whole context that a graph sees, the new tokens included',
  });
}

/**
 * Every graph of a request in the sense of a contract. Where graphs shift their caches these have the same slots in every
 * graph, which sees its own tokens besides; the names are MediaTek's, such as `128t512c` (facts edgeinfinite 4.1).
 */
export function contractRequests(shapes: ShapeRequest, { update }: Pick<IoContract, 'update'>): GraphRequest[] {
  if (update !== 'shift') return graphRequests(shapes);
  const context = largestCache(shapes) + Math.max(...shapes.tokens);
  return graphRequests(shapes).map(({ tokens, cache }) => ({
    name: `${tokens}t${cache}c`,
    tokens,
    cache: cache + tokens,
    context,
  }));
}

/** Slots of the caches that a graph takes: what a session calls its cache. */
export function cacheSlots({ tokens, cache }: GraphRequest, { update }: Pick<IoContract, 'update'>): number {
  return update === 'shift' ? cache - tokens : cache;
}

/**
 * Every graph of a request: caches from small to large, in each the prefill sizes, largest first, then decode. All of them
 * are made for the largest context, so that they have the same rotary tables.
 */
export function graphRequests({ tokens, caches }: ShapeRequest): GraphRequest[] {
  const sizes = [...new Set([...tokens, 1])].sort((a, b) => b - a);
  const contexts = [...new Set(caches)].sort((a, b) => a - b);
  const context = contexts.at(-1)!;
  return contexts.flatMap((cache) =>
    sizes.map((size) => {
      const name = size === 1 ? 'decode' : `prefill_${size}`;
      return { name: contexts.length > 1 ? `${name}_c${cache}` : name, tokens: size, cache, context };
    }),
  );
}
