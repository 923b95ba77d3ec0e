import { createHash } from 'node:crypto';
import { basename, dirname, relative } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { type Pass, runPasses } from '../../compiler/pass.ts';
import { type FreezeOptions, freezeShapes } from '../../passes/freeze-shapes.ts';
import { liftOpset } from '../../passes/lift-opset.ts';
import { fuse, simplify } from '../../passes/pipelines.ts';
import { describeFile } from '../../targets/manifest.ts';

/** An ONNX model, ready for any target. */
export interface OpenedModel {
  /** Frozen, simplified, fused, in float. */
  readonly module: Module;
  readonly digest: string;
  readonly bindings: Readonly<Record<string, number | readonly number[]>>;
  /** What the passes have to say that matters to the user. */
  readonly remarks: readonly string[];
}

/** Quantization in blocks and in 4 and 16 bits, and HardSwish, Gelu and LayerNormalization as one node each. */
const OPSET = 21;

/**
 * Opens an ONNX model, binds its symbolic dimensions, and brings it into the form that targets start from.
 * @param bind `name=number` for symbolic dimensions, `input=1x3x224x224` for whole shapes
 * @throws CL001 for a binding that cannot be read, IO and IM errors for a bad model, PS110 naming dimensions without a
 *   binding, PS111 for a binding that fits nothing, PS112 for a shape that only data decides
 */
export function openModel(source: string, bind: readonly string[], options: OpenModelOptions = {}): OpenedModel {
  const freeze = readBindings(bind);
  const module = openOnnx(source);
  const digest = digestModel(source, module);
  const remarks = freezeModel(module, freeze, options);
  return { module, digest, bindings: { ...freeze.bindings, ...freeze.inputs }, remarks };
}

export interface OpenModelOptions {
  /** Fusions in the place of npuc's own: a test puts a faulty one in. */
  readonly fusions?: readonly Pass[];
  /** Sees the module behind every pass that changed it. */
  readonly onChange?: (pass: string, module: Module) => void;
}

/** `name=number` and `input=1x3x224x224`. @throws CL001 */
export function readBindings(bind: readonly string[]): FreezeOptions {
  const bindings: Record<string, number> = {};
  const inputs: Record<string, readonly number[]> = {};
  for (const each of bind) {
    // Names may hold an equals sign themselves; what follows the last one is the length.
    const at = each.lastIndexOf('=');
    const [name, value] = [each.slice(0, at), each.slice(at + 1)];
    if (at < 1 || !/^[1-9]\d*(x[1-9]\d*)*$/.test(value)) {
      throw new NpucError('CL001', {
        message: `--bind ${each} is not understood`,
        hint: '--bind name=number for a symbolic dimension, --bind input=1x3x224x224 for the shape of an input',
      });
    }
    const lengths = value.split('x').map(Number);
    if (lengths.length === 1) bindings[name] = lengths[0]!;
    else inputs[name] = lengths;
  }
  return { bindings, inputs };
}

/** Simplifies, freezes and fuses a module in place. @returns what the passes have to say that matters to the user */
function freezeModel(module: Module, freeze: FreezeOptions, { fusions = fuse, onChange }: OpenModelOptions): string[] {
  const onPass = (name: string, changed: boolean): void => {
    if (changed) onChange?.(name, module);
  };
  runPasses(module, simplify, { untilStable: true, onPass });
  runPasses(module, [freezeShapes(freeze)], { onPass });
  runPasses(module, simplify, { untilStable: true, onPass });
  const lifted = runPasses(module, [liftOpset(OPSET)], { onPass });
  runPasses(module, [...fusions, ...simplify], { untilStable: true, onPass });
  return lifted.remarks.map(({ where, text }) => `${where}: ${text}`);
}

/** SHA-256 of the model file; with external data, of the digests of all files. */
function digestModel(path: string, module: Module): string {
  const folder = dirname(path);
  const own = describeFile(folder, basename(path)).sha256;
  const others = [...module.weights]
    .flatMap(({ storage }) => (storage.kind === 'file' ? [relative(folder, storage.file.path)] : []))
    .filter((name) => name !== basename(path));
  if (others.length === 0) return own;
  const hash = createHash('sha256').update(own);
  for (const name of [...new Set(others)].sort()) hash.update(`${name} ${describeFile(folder, name).sha256}`);
  return hash.digest('hex');
}
