import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Module, Value } from '../../compiler/ir/graph.ts';

/** What is swapped back in a quantized graph, to see what it costs. */
export interface Patch {
  /** Values and weights that stay float. */
  readonly float?: (value: Value) => boolean;
  /** Encodings in the place of those that the plan has, by name. */
  readonly encodings?: ReadonlyMap<string, Encoding>;
  /** Integers that were chosen for a replaced encoding are dropped with it: rounding to nearest makes them anew. */
  readonly dropPayload?: boolean;
}

/** Changes a stamped module in place: what has no encoding any more is computed in floats. */
export function patchModule(module: Module, patch: Patch): Module {
  for (const value of module.graph().values) {
    if (!value.encoding) continue;
    const encoding = patch.encodings?.get(value.name);
    if (encoding) {
      value.encoding = encoding;
      if (patch.dropPayload) value.payload = undefined;
    }
    if (!patch.float?.(value)) continue;
    value.encoding = undefined;
    value.payload = undefined;
  }
  return module;
}
