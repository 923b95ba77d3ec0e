import type { DecoderProtocol } from '../../compiler/runtime/decoder-session.ts';
import type { GenieTable } from './genie-table.ts';
import type { ContextGraph, ContextInfo, ContextTensor } from './read-context.ts';

/** A raw mask of 0 must be a value that softmax turns into nothing. */
const LEAST_MASK = -20;
const FLOATS: readonly string[] = ['f16', 'f32'];

interface Found {
  readonly problems: string[];
  readonly warnings: string[];
}

/** A graph of a bundle: its sizes, and the names of its parts inside the binaries in the order that they run in. */
export interface BundledGraph {
  readonly tokens: number;
  readonly cache: number;
  readonly parts: readonly string[];
}

/**
 * Whether Genie takes the past of a graph for its new tokens, which are as many: its text then differs from the second token
 * on, without an error (measured on libGenie 2.51 with 16 tokens and caches of 32; 40 and 64 are right).
 */
export function isMistaken(tokens: number, cache: number): boolean {
  return cache === 2 * tokens && tokens > 1;
}

/**
 * Checks the graphs of a bundle's binaries against Genie's contract: names, shapes, types, and the quantization that Genie
 * takes for granted (an attended token is 65535 in the mask, an empty 8-bit cache is 128, a cache goes out as it came in,
 * and every shared tensor has one quantization in all graphs). The parts of a graph that was cut are checked together.
 * @param wanted the graphs that should be there
 * @param table what Genie looks rows up in, where the graphs take rows
 */
export function checkGraphs(
  contexts: ReadonlyMap<string, ContextInfo>,
  protocol: DecoderProtocol,
  wanted: readonly BundledGraph[],
  table?: GenieTable,
): Found {
  const found: Found = { problems: [], warnings: [] };
  const { problems } = found;
  const there = new Map(
    [...contexts].flatMap(([binary, { graphs }]) => graphs.map((graph) => [graph.name, { binary, graph }] as const)),
  );
  const listed = new Set(wanted.flatMap(({ parts }) => parts));
  for (const [name, { binary }] of there)
    if (!listed.has(name)) problems.push(`${binary} has the graph ${name}, which the bundle does not list`);
  const seen = new Map<string, { readonly where: string; readonly form: string }>();
  for (const { tokens, cache, parts } of wanted) {
    const missing = parts.filter((name) => !there.has(name));
    for (const name of missing) problems.push(`no binary has the graph ${name}`);
    if (missing.length > 0) continue;
    const binaries = new Set(parts.map((name) => there.get(name)!.binary));
    const where = `${[...binaries].join(' + ')}, ${tokens} tokens`;
    const graph = joinParts(
      parts.map((name) => there.get(name)!.graph),
      where,
      found,
    );
    checkPorts(graph, { ...protocol, cache }, tokens, where, found, table);
    if (table) checkRows(graph, protocol, table, where, found);
    checkCache(graph, protocol, where, found);
    checkMask(graph, protocol, where, found);
    for (const tensor of [...graph.inputs, ...graph.outputs]) {
      const form = describe(tensor);
      const other = seen.get(tensor.name);
      if (other && other.form !== form)
        problems.push(`${tensor.name} is ${form} in ${where}, ${other.form} in ${other.where}`);
      else seen.set(tensor.name, { where, form });
    }
  }
  return found;
}

/** Parts as one graph. Genie runs them in the order of their names, and hands tensors on as they are. */
function joinParts(parts: readonly ContextGraph[], where: string, { problems }: Found): ContextGraph {
  const names = parts.map(({ name }) => name);
  const sorted = [...names].sort();
  if (names.join() !== sorted.join())
    problems.push(`${where}: Genie would run the parts as ${sorted.join(', ')}, they are ${names.join(', ')}`);
  const handed = new Set<string>();
  parts.forEach((part, index) => {
    for (const output of part.outputs) {
      for (const later of parts.slice(index + 1)) {
        const input = later.inputs.find(({ name }) => name === output.name);
        if (!input) continue;
        handed.add(output.name);
        const [left, entered] = [output, input].map((tensor) => `[${tensor.shape}] ${describe(tensor)}`);
        if (left !== entered)
          problems.push(
            `${where}: ${output.name} leaves ${part.name} as ${left} and enters ${later.name} as ${entered}`,
          );
      }
    }
  });
  const all = (side: 'inputs' | 'outputs'): ContextTensor[] =>
    [
      ...new Map(
        parts.flatMap((part) =>
          part[side].flatMap((tensor) => (handed.has(tensor.name) ? [] : [[tensor.name, tensor]])),
        ),
      ).values(),
    ] as ContextTensor[];
  return { ...parts[0]!, inputs: all('inputs'), outputs: all('outputs') };
}

/** Names and shapes: facts genie-cnn A, qnn-htp 4. A missing cache output ends Genie in a segmentation fault. */
function checkPorts(
  graph: ContextGraph,
  { names, headDim, vocabSize, cache, layers }: DecoderProtocol,
  size: number,
  where: string,
  { problems }: Found,
  table: GenieTable | undefined,
): void {
  if (size >= cache) problems.push(`${where}: the context of ${cache} has no room for a past`);
  if (isMistaken(size, cache))
    problems.push(`${where}: a context of ${cache} has ${size} past slots, Genie takes them for the new tokens`);
  const past = cache - size;
  const half = headDim / 2;
  const heads = graph.inputs.find(({ name }) => name === names.pastKey[0])?.shape[0] ?? 0;
  const inputs = new Map<string, readonly number[]>([
    [names.tokens, table ? [1, size, table.width] : [1, size]],
    [names.mask, [1, 1, size, cache]],
    [names.cos ?? 'position_ids_cos', [1, 1, size, half]],
    [names.sin ?? 'position_ids_sin', [1, 1, size, half]],
  ]);
  const outputs = new Map<string, readonly number[]>([[names.logits, [1, size, vocabSize]]]);
  for (let layer = 0; layer < layers; layer++) {
    inputs.set(names.pastKey[layer]!, [heads, 1, headDim, past]);
    inputs.set(names.pastValue[layer]!, [heads, 1, past, headDim]);
    outputs.set(names.newKey[layer]!, [heads, 1, headDim, size]);
    outputs.set(names.newValue[layer]!, [heads, 1, size, headDim]);
  }
  for (const [side, wanted, tensors] of [
    ['input', inputs, graph.inputs],
    ['output', outputs, graph.outputs],
  ] as const) {
    for (const { name } of tensors) {
      if (!wanted.has(name)) problems.push(`${where}: Genie knows no ${side} ${name}`);
    }
    for (const [name, shape] of wanted) {
      const tensor = tensors.find((candidate) => candidate.name === name);
      if (!tensor) problems.push(`${where}: ${side} ${name} is missing`);
      else if (tensor.shape.join() !== shape.join())
        problems.push(`${where}: ${name} is [${tensor.shape}], Genie wants [${shape}]`);
    }
  }
  const ids = graph.inputs.find(({ name }) => name === names.tokens);
  if (ids && !table && ids.dtype !== 'i32') problems.push(`${where}: ${ids.name} is ${ids.dtype}, Genie feeds i32`);
  for (const name of [names.cos, names.sin, names.logits]) {
    const tensor = [...graph.inputs, ...graph.outputs].find((candidate) => candidate.name === name);
    if (tensor && tensor.dtype !== 'u16' && !FLOATS.includes(tensor.dtype))
      problems.push(`${where}: ${tensor.name} is ${tensor.dtype}, Genie takes u16 and floats`);
  }
}

/** Genie converts rows to the port's integers; from a table that has one scale it must have nothing to convert. */
function checkRows(
  graph: ContextGraph,
  { names }: DecoderProtocol,
  { datatype, quantization }: GenieTable,
  where: string,
  { problems }: Found,
): void {
  const port = graph.inputs.find(({ name }) => name === names.tokens);
  if (!port) return;
  const isFloat = FLOATS.includes(port.dtype);
  if (isFloat !== (datatype === 'float32')) {
    problems.push(`${where}: ${port.name} is ${port.dtype}, the embedding table is ${datatype}`);
    return;
  }
  if (typeof quantization?.scale !== 'number') return;
  const form = `${datatype === 'ufixed8' ? 'u8' : 'u16'} with scale ${Math.fround(quantization.scale)}, zero ${-Number(quantization.offset)}`;
  if (form !== describe(port))
    problems.push(`${where}: ${port.name} is ${describe(port)}, the embedding table is ${form}`);
}

/** Genie copies what comes out of a cache port into its input without looking at the scales. */
function checkCache(graph: ContextGraph, { names }: DecoderProtocol, where: string, found: Found): void {
  const types = new Set<string>();
  const pairs = [
    ...names.pastKey.map((name, layer) => [name, names.newKey[layer]!] as const),
    ...names.pastValue.map((name, layer) => [name, names.newValue[layer]!] as const),
  ];
  for (const [past, added] of pairs) {
    const from = graph.outputs.find(({ name }) => name === added);
    const to = graph.inputs.find(({ name }) => name === past);
    if (!from || !to) continue;
    types.add(to.dtype);
    if (describe(from) !== describe(to))
      found.problems.push(`${where}: ${added} is ${describe(from)}, it goes into ${past} as ${describe(to)}`);
    if (to.dtype === 'u8' && to.zeroPoint !== 128)
      found.problems.push(`${where}: ${past} has zero at ${to.zeroPoint}, an empty cache of Genie's is 128`);
  }
  if (types.size > 1) found.problems.push(`${where}: the caches are ${[...types].join(' and ')}, Genie wants one type`);
  for (const type of types) {
    if (type !== 'u8' && !FLOATS.includes(type))
      found.warnings.push(
        `${where}: the caches are ${type}; Genie documents u8 only, other types ran on the simulator`,
      );
  }
}

/** Genie writes 65535 (or the type's largest integer) where a token may look, 0 elsewhere. */
function checkMask(graph: ContextGraph, { names }: DecoderProtocol, where: string, { problems }: Found): void {
  const mask = graph.inputs.find(({ name }) => name === names.mask);
  if (!mask || FLOATS.includes(mask.dtype)) return;
  if (mask.dtype !== 'u16' && mask.dtype !== 'u8') {
    problems.push(`${where}: ${mask.name} is ${mask.dtype}, Genie writes u16`);
    return;
  }
  const top = mask.dtype === 'u16' ? 65535 : 255;
  if (mask.zeroPoint !== top)
    problems.push(`${where}: ${mask.name} has zero at ${mask.zeroPoint}, Genie writes ${top} where a token may look`);
  const hidden = (0 - (mask.zeroPoint ?? 0)) * (mask.scale ?? 0);
  if (hidden > LEAST_MASK) problems.push(`${where}: ${mask.name} hides a token with ${hidden}, which is too near to 0`);
}

function describe({ dtype, scale, zeroPoint }: ContextTensor): string {
  return scale === undefined ? dtype : `${dtype} with scale ${scale}, zero ${zeroPoint}`;
}
