import { NpucError } from '../../errors.ts';
import type { Tensor } from '../../ir/tensor.ts';
import { isJsonObject, type JsonObject } from '../json.ts';
import { readAwq } from './awq.ts';
import { readCompressedTensors } from './compressed-tensors.ts';
import { readGptq } from './gptq.ts';
import { ModuleTensors } from './module-tensors.ts';
import { openWeight, type StoredWeight, type TakenWeight } from './stored-weight.ts';

/** A checkpoint whose quantized layers are read as what they stand for. */
export interface TakenOver {
  /** Without the quantization. */
  readonly config: JsonObject;
  /** Float weights under the names that an unquantized checkpoint has. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** The integers behind them, by weight name. */
  readonly taken: ReadonlyMap<string, TakenWeight>;
}

interface Format {
  /** The tensor that only a quantized layer has. */
  readonly marks: readonly string[];
  /** Tensors of a layer that are no more there once it is read. */
  readonly parts: readonly string[];
  readonly read: (module: ModuleTensors, config: JsonObject) => StoredWeight;
  /** Why a config of this method cannot be taken over. */
  readonly refuse?: (config: JsonObject) => string | undefined;
}

const FORMATS: Readonly<Record<string, Format>> = {
  gptq: {
    marks: ['qweight'],
    parts: ['qweight', 'qzeros', 'scales', 'g_idx'],
    read: readGptq,
    refuse: ({ checkpoint_format: format = 'gptq', is_marlin_format: marlin }) =>
      marlin || (format !== 'gptq' && format !== 'gptq_v2')
        ? `its layout is that of one kernel (${marlin ? 'marlin' : String(format)})`
        : undefined,
  },
  awq: {
    marks: ['qweight'],
    parts: ['qweight', 'qzeros', 'scales'],
    read: readAwq,
    refuse: ({ version = 'gemm', bits = 4 }) =>
      String(version).toLowerCase() !== 'gemm'
        ? `its layout is that of one kernel (version ${String(version)}; gemm is read)`
        : bits !== 4
          ? `weights of ${String(bits)} bits; AWQ has 4`
          : undefined,
  },
  'compressed-tensors': {
    marks: ['weight_packed', 'weight_scale'],
    parts: ['weight_packed', 'weight_scale', 'weight_zero_point', 'weight_shape', 'weight_g_idx'],
    read: readCompressedTensors,
    refuse: ({ format = 'pack-quantized', sparsity_config: sparsity }) =>
      !['pack-quantized', 'int-quantized', 'mixed-precision', 'dense'].includes(String(format))
        ? `its format is ${String(format)}; pack-quantized and int-quantized are read`
        : isJsonObject(sparsity) && sparsity.format !== undefined && sparsity.format !== 'dense'
          ? `its weights are sparse (${String(sparsity.format)})`
          : undefined,
  },
};

/**
 * Reads the quantized layers of a GPTQ, AWQ or compressed-tensors checkpoint: their integers, not a rounding of what they
 * stand for. Layers that were left in floats stay as they are. A checkpoint without a quantization passes through.
 * @throws IM405 for other methods, layouts and widths, and tensors that contradict each other
 */
export function takeOver(config: JsonObject, tensors: ReadonlyMap<string, Tensor>, where: string): TakenOver {
  const { quantization_config: quantization, ...rest } = config;
  if (!isJsonObject(quantization)) return { config: rest, tensors, taken: new Map() };
  const method = String(quantization.quant_method ?? 'nothing');
  const format = Object.hasOwn(FORMATS, method) ? FORMATS[method] : undefined;
  const reason = format ? format.refuse?.(quantization) : `it is quantized by ${method}`;
  if (!format || reason !== undefined) {
    throw new NpucError('IM405', {
      message: `the quantized weights cannot be taken over: ${reason}`,
      where,
      hint: 'GPTQ, AWQ (gemm) and compressed-tensors integers of 4 and 8 bits are; or take the checkpoint in floats',
    });
  }
  const floats = new Map<string, Tensor>();
  const taken = new Map<string, TakenWeight>();
  const modules = new Set<string>();
  for (const name of tensors.keys()) {
    const mark = format.marks.find((each) => name.endsWith(`.${each}`));
    if (mark) modules.add(name.slice(0, -mark.length - 1));
  }
  for (const [name, tensor] of tensors) {
    const cut = name.lastIndexOf('.');
    const [module, part] = [name.slice(0, cut), name.slice(cut + 1)];
    if (!modules.has(module)) {
      floats.set(name, tensor);
      continue;
    }
    const weight = `${module}.weight`;
    if (!floats.has(weight)) {
      const opened = openWeight(format.read(new ModuleTensors(module, tensors, where), quantization));
      floats.set(weight, opened.floats);
      taken.set(weight, opened.taken);
    }
    if (part !== 'weight' && !format.parts.includes(part)) floats.set(name, tensor);
  }
  if (modules.size === 0) {
    throw new NpucError('IM405', {
      message: `config.json says ${method}, but no layer has ${format.marks.map((mark) => `a ${mark}`).join(' or ')}`,
      where,
      hint: 'is every shard there?',
    });
  }
  return { config: rest, tensors: floats, taken };
}
