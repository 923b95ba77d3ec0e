import { encode as encodeFlexBuffer } from 'flatbuffers/js/flexbuffers.js';
import type { Node } from '../../compiler/ir/graph.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import type { Lowering } from './lowering.ts';
import type { TfliteTensor } from './model.ts';
import { TensorType } from './schema-enums.ts';
import { SubgraphBuilder } from './subgraph-builder.ts';

/** Why an RMSNormalization has no TFLite form; undefined when it has one. */
export function refuseRmsNorm(node: Node): string | undefined {
  const rank = node.input(0).dims.length;
  const axis = node.int('axis', -1);
  if (axis !== -1 && axis !== rank - 1) return `RMSNormalization over the axes from ${axis}`;
  if (!node.input(1).data || node.input(1).dims.length !== 1)
    return 'RMSNormalization without a constant weight per channel';
  return undefined;
}

/**
 * RMSNormalization as the composite `odml.rms_norm`: NPU compilers take it as one native op, and runtimes that do not know
 * it run its body, the same arithmetic in 32-bit floats. Written out as operators it would run in half floats on an NPU,
 * where the squares of a residual stream with channels above 255 overflow (measured on the HTP simulator: SmolLM2's
 * stream of 3,000 gave no signal at all behind the first norm).
 */
export function lowerRmsNorm(node: Node, lowering: Lowering): void {
  const { builder, parts } = lowering;
  const tensors = [node.input(0), node.input(1), node.output()].map((value) => builder.tensorOf(value));
  const [input, weight, output] = tensors.map((index) => builder.tensor(index)) as [
    TfliteTensor,
    TfliteTensor,
    TfliteTensor,
  ];
  const epsilon = node.float('epsilon', 1e-5);
  // A body each, equal ones too: the Qualcomm compiler fails on a body that two composites share (measured).
  const body = new SubgraphBuilder(`${builder.graph.name}/${node.output().name}.body`, parts.pool);
  buildBody(body, [input, weight, output], epsilon);
  builder.addOperator('STABLEHLO_COMPOSITE', tensors.slice(0, 2), [tensors[2]!], {
    options2: {
      kind: 'StableHLOCompositeOptions',
      name: 'odml.rms_norm',
      decompositionSubgraphIndex: parts.addBody(body.graph),
      compositeAttributes: encodeFlexBuffer({ epsilon }),
      compositeAttributesFormat: 0,
      version: 1,
    },
  });
}

/** x * rsqrt(mean(x * x) + epsilon) * weight, in floats between conversions of the tensors' own formats. */
function buildBody(body: SubgraphBuilder, ports: readonly TfliteTensor[], epsilon: number): void {
  const copy = (name: string, { type, shape, quantization }: TfliteTensor): number =>
    body.addTensor(name, type, shape, quantization);
  const [input, weight, output] = [copy('x', ports[0]!), copy('weight', ports[1]!), copy('y', ports[2]!)];
  body.graph.inputs = [input, weight];
  body.graph.outputs = [output];
  const isFloat = (index: number): boolean => body.tensor(index).type === TensorType.FLOAT32;
  const toFloat = (index: number, name: string): number => (isFloat(index) ? index : body.addDequantize(index, name));
  const { shape } = ports[0]!;
  const rows = [...shape.slice(0, -1), 1];
  const multiply = (a: number, b: number, to: number): number => {
    body.addOperator('MUL', [a, b], [to], { options: { kind: 'MulOptions', fusedActivationFunction: 0 } });
    return to;
  };

  const x = toFloat(input, 'x.float');
  const squares = multiply(x, x, body.addFloats('squares', shape));
  const [mean, sum, root] = [body.addFloats('mean', rows), body.addFloats('sum', rows), body.addFloats('root', rows)];
  body.addOperator('MEAN', [squares, body.addInts('axis', [shape.length - 1])], [mean], {
    options: { kind: 'ReducerOptions', keepDims: true },
  });
  const offset = body.addConstant('epsilon', Tensor.of('f32', [1], [epsilon]));
  body.addOperator('ADD', [mean, offset], [sum], {
    options: { kind: 'AddOptions', fusedActivationFunction: 0, potScaleInt16: false },
  });
  body.addOperator('RSQRT', [sum], [root]);
  const normed = multiply(x, root, body.addFloats('normed', shape));
  const gain = toFloat(weight, 'weight.float');
  if (isFloat(output)) multiply(normed, gain, output);
  else body.addQuantize(multiply(normed, gain, body.addFloats('y.float', shape)), output);
}
