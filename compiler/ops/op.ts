import type { Node, Shape, ValueType } from '../ir/graph.ts';
import type { Tensor, TensorData } from '../ir/tensor.ts';

/** What an op's shape rule may ask. */
export interface InferContext {
  readonly node: Node;
  /** Opset version of the node's domain in its module. */
  readonly opset: number;
  /** Type of an input, undefined when it is absent or not known. */
  type(index: number): ValueType | undefined;
  /** Shape of a tensor input, undefined when absent or of unknown rank. */
  shape(index: number): Shape | undefined;
  /** The tensor behind a constant input, undefined when it is not constant. */
  constant(index: number): Tensor | undefined;
  /**
   * An integer input as dimensions when its content is known, be it constant or computed from shapes
   * (`Shape` -> `Gather` -> `Concat` chains): symbolic entries are expressions, unknown ones undefined.
   */
  content(index: number): readonly (number | string | undefined)[] | undefined;
}

export interface EvaluateContext {
  readonly node: Node;
  readonly opset: number;
}

/**
 * How an op takes part in quantization:
 * - passthrough: data movement, output and data inputs share one encoding (Reshape, Transpose, Slice, Concat ...);
 * - independent: every floating output gets its own encoding (Add, Mul, Softmax ...);
 * - weighted: as independent, and input 1 is a weight when it is constant (MatMul, Gemm, Conv ...);
 * - fixed: the output range is known without calibration (Softmax and Sigmoid: 0..1, Tanh: -1..1);
 * - never: stays as it is (shape arithmetic, control flow, integer ops).
 */
export type QuantizationRule =
  | 'passthrough'
  | 'independent'
  | 'weighted'
  | 'never'
  | { readonly fixed: readonly [number, number] };

/** One ONNX op: its shapes, its reference semantics and its quantization rule, in one record. */
export interface OpDefinition {
  readonly name: string;
  /** '' is the ONNX domain. */
  readonly domain: string;
  /** First opset whose semantics `infer` and `evaluate` follow. */
  readonly since: number;
  /** Output types; an entry is undefined where it cannot be known. Symbolic dims are kept. @throws IR errors on a bad model */
  readonly infer?: (context: InferContext) => readonly (ValueType | undefined)[];
  /**
   * Reference semantics on plain arrays, readable before fast: the constant folder and the oracle of tests.
   * Absent for ops that are only carried through.
   */
  readonly evaluate?: (
    inputs: readonly (TensorData | undefined)[],
    context: EvaluateContext,
  ) => readonly (TensorData | undefined)[];
  readonly quantization: QuantizationRule;
}

/** Declares an op. */
export function defineOp(definition: Omit<OpDefinition, 'domain'> & { domain?: string }): OpDefinition {
  return { ...definition, domain: definition.domain ?? '' };
}
