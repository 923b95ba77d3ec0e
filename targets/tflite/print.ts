import type { TfliteModel, TfliteOperator, TfliteQuantization, TfliteSubgraph, TfliteTensor } from './model.ts';
import { ActivationFunctionType, operatorName, Padding, tensorTypeName } from './schema-enums.ts';

/**
 * A TFLite model as text in the manner of the IR's text form: every subgraph with its inputs, constants, operators in order and
 * outputs, then the signatures. Constants are named by their buffer, not printed.
 */
export function printTflite(model: TfliteModel): string {
  const lines = [`tflite ${model.version}${model.description ? ` ${JSON.stringify(model.description)}` : ''}`];
  model.subgraphs.forEach((graph, index) => lines.push('', ...printSubgraph(graph, index, model)));
  for (const { key, subgraph, inputs, outputs } of model.signatures) {
    const ports = (list: typeof inputs): string =>
      list
        .map(({ name, tensor }) => `${JSON.stringify(name)} = ${nameOf(model.subgraphs[subgraph]!, tensor)}`)
        .join(', ');
    lines.push('', `signature ${JSON.stringify(key)} of subgraph ${subgraph}`);
    lines.push(`  in   ${ports(inputs)}`, `  out  ${ports(outputs)}`);
  }
  for (const { name, buffer } of model.metadata) lines.push('', `metadata ${JSON.stringify(name)} = buffer ${buffer}`);
  return `${lines.join('\n')}\n`;
}

function printSubgraph(graph: TfliteSubgraph, index: number, model: TfliteModel): string[] {
  const lines = [`subgraph ${index} ${JSON.stringify(graph.name ?? '')}`];
  for (const input of graph.inputs) lines.push(`  in   ${declare(graph, input)}`);
  graph.tensors.forEach(({ buffer }, tensor) => {
    const bytes = buffer === 0 ? undefined : model.buffers[buffer];
    if (bytes) lines.push(`  ${declare(graph, tensor)} = buffer ${buffer}, ${bytes.byteLength} bytes`);
  });
  for (const operator of graph.operators) lines.push(`  ${printOperator(graph, operator)}`);
  for (const output of graph.outputs) lines.push(`  out  ${nameOf(graph, output)}`);
  return lines;
}

/** Names that stand for tensors; where a file gives one name to several, their numbers tell them apart. */
const known = new WeakMap<TfliteSubgraph, string[]>();

function nameOf(graph: TfliteSubgraph, tensor: number): string {
  if (tensor < 0) return '_';
  let names = known.get(graph);
  if (!names) {
    const counts = new Map<string, number>();
    for (const { name } of graph.tensors) counts.set(name, (counts.get(name) ?? 0) + 1);
    names = graph.tensors.map(({ name }, i) => `%${name === '' || counts.get(name)! > 1 ? `${name}#${i}` : name}`);
    known.set(graph, names);
  }
  return names[tensor]!;
}

function declare(graph: TfliteSubgraph, tensor: number): string {
  return `${nameOf(graph, tensor)} : ${typeText(graph.tensors[tensor]!)}`;
}

function typeText({ type, shape, shapeSignature, hasRank, quantization, isVariable }: TfliteTensor): string {
  const dims = hasRank === false ? '...' : (shapeSignature ?? shape).map((dim) => (dim === -1 ? '?' : dim)).join(',');
  return `${tensorTypeName(type)}[${dims}]${quantizationText(quantization)}${isVariable ? ' variable' : ''}`;
}

/** One scale as itself, several as their number and range. */
function quantizationText(quantization: TfliteQuantization | undefined): string {
  const { scale, zeroPoint, quantizedDimension = 0, details } = quantization ?? {};
  if (details?.kind === 'BlockwiseQuantization')
    return ` q(block ${details.blockSize}, scales tensor ${details.scales})`;
  if (!scale || scale.length === 0) return '';
  const zeros = Array.from(zeroPoint ?? []);
  const zero = zeros.every((each) => each === 0)
    ? ''
    : zeros.length === 1
      ? `, zero ${zeros[0]}`
      : ', zeros per channel';
  if (scale.length === 1) return ` q(scale ${shortest(scale[0]!)}${zero})`;
  const all = Array.from(scale);
  const least = shortest(all.reduce((a, b) => Math.min(a, b)));
  const most = shortest(all.reduce((a, b) => Math.max(a, b)));
  return ` q(axis ${quantizedDimension}, ${all.length} scales ${least}..${most}${zero})`;
}

/** The shortest decimal number that is this 32-bit float. */
function shortest(value: number): string {
  for (let digits = 1; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === Math.fround(value)) return String(Number(text));
  }
  return String(value);
}

function printOperator(graph: TfliteSubgraph, operator: TfliteOperator): string {
  const outputs = operator.outputs.map((tensor) => declare(graph, tensor)).join(', ');
  const inputs = operator.inputs.map((tensor) => nameOf(graph, tensor)).join(', ');
  const name = operator.customCode ?? operatorName(operator.code);
  const options = { ...operator.options, ...operator.options2 } as Readonly<Record<string, unknown>>;
  const shown = Object.entries(options)
    .filter(
      ([key, value]) => key === 'padding' || (key !== 'kind' && value !== 0 && value !== false && value !== undefined),
    )
    .map(([key, value]) => `${key} ${CODES[key]?.[Number(value)] ?? optionText(value)}`);
  return `${outputs} = ${name}.${operator.version}(${inputs})${shown.length > 0 ? ` {${shown.join(', ')}}` : ''}`;
}

/** Options that are codes of something with a name. */
const CODES: Readonly<Record<string, readonly string[]>> = {
  padding: Object.keys(Padding),
  fusedActivationFunction: Object.keys(ActivationFunctionType),
};

/** Elements of an option that are printed. */
const MOST_ELEMENTS = 16;

function optionText(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (!ArrayBuffer.isView(value)) return String(value);
  const elements = Array.from(value as Int32Array);
  const more = elements.length > MOST_ELEMENTS ? `, and ${elements.length - MOST_ELEMENTS} more` : '';
  return `[${elements.slice(0, MOST_ELEMENTS).join(', ')}${more}]`;
}
