import { createRequire } from 'node:module';
import type { MathNode } from 'mathjs';
import { NpucError } from '../errors.ts';
import type { Dim, Shape } from './graph.ts';

/**
 * Arithmetic on dimensions. A symbolic dimension is kept as text in mathjs syntax and in one normal form, a sum of
 * products of names (`past + tokens`, `2 * tokens + 1`, `floor((tokens + 1) / 2)`, `max(a, b)`), so that equal
 * expressions are mostly equal strings. mathjs parses expressions that come from outside; it takes 0.2 s to load
 * (mathjs/number, CommonJS) and is loaded by the first text that is neither an integer nor a plain name. The normal form
 * is ours because mathjs' `simplify` gives none: `a + b` and `b + a` stay different there.
 */

/** A product: the names (or calls) it multiplies, sorted, joined by `*`; '' is the constant term. */
type Polynomial = ReadonlyMap<string, number>;

/** A call such as floor(p / q) or max(p, q), known by its text. */
interface Call {
  readonly name: 'floor' | 'ceil' | 'max' | 'min' | 'mod';
  readonly parameters: readonly Polynomial[];
}

const calls = new Map<string, Call>();
const parsed = new Map<string, Polynomial | undefined>();
/** Exporters put dots into names, which mathjs would take for property access. */
const NAME = /^[\p{L}_][\p{L}\p{N}_]*(\.[\p{L}\p{N}_]+)*$/u;
const DOTTED = /[\p{L}_][\p{L}\p{N}_]*(\.[\p{L}\p{N}_]+)+/gu;
const FACTOR_SEPARATOR = '\u0000';

/** The names and calls of a product. */
const factorsOf = (product: string): string[] => (product === '' ? [] : product.split(FACTOR_SEPARATOR));

const constant = (value: number): Polynomial => (value === 0 ? new Map() : new Map([['', value]]));

function asConstant(polynomial: Polynomial): number | undefined {
  if (polynomial.size === 0) return 0;
  return polynomial.size === 1 ? polynomial.get('') : undefined;
}

function combine(a: Polynomial, b: Polynomial, sign: 1 | -1): Polynomial {
  const sum = new Map(a);
  for (const [product, factor] of b) {
    const total = (sum.get(product) ?? 0) + sign * factor;
    if (total === 0) sum.delete(product);
    else sum.set(product, total);
  }
  return sum;
}

function multiply(a: Polynomial, b: Polynomial): Polynomial {
  let sum: Polynomial = new Map();
  for (const [left, x] of a) {
    for (const [right, y] of b) {
      const factors = [...factorsOf(left), ...factorsOf(right)];
      sum = combine(sum, new Map([[factors.sort().join(FACTOR_SEPARATOR), x * y]]), 1);
    }
  }
  return sum;
}

/** a / b when every term divides, integers only. */
function divideExactly(a: Polynomial, b: Polynomial): Polynomial | undefined {
  if (b.size !== 1) return samePolynomial(a, b) ? constant(1) : undefined;
  const [divisor, by] = [...b][0]!;
  const factors = factorsOf(divisor);
  const quotient = new Map<string, number>();
  for (const [product, factor] of a) {
    const rest = factorsOf(product);
    for (const name of factors) {
      const at = rest.indexOf(name);
      if (at < 0) return undefined;
      rest.splice(at, 1);
    }
    if (factor % by !== 0) return undefined;
    quotient.set(rest.join(FACTOR_SEPARATOR), factor / by);
  }
  return quotient;
}

function samePolynomial(a: Polynomial, b: Polynomial): boolean {
  return a.size === b.size && [...a].every(([product, factor]) => b.get(product) === factor);
}

/** Whether a polynomial prints as one name, call or number, which needs no parentheses. */
function isAtom(polynomial: Polynomial): boolean {
  if (asConstant(polynomial) !== undefined) return true;
  const [[product, factor]] = [...polynomial] as [[string, number]];
  return polynomial.size === 1 && factor === 1 && !product.includes(FACTOR_SEPARATOR);
}

function call(name: Call['name'], parameters: readonly Polynomial[]): Polynomial {
  const text =
    name === 'floor' || name === 'ceil'
      ? `${name}(${parameters.map((side) => (isAtom(side) ? print(side) : `(${print(side)})`)).join(' / ')})`
      : `${name}(${parameters.map(print).join(', ')})`;
  calls.set(text, { name, parameters });
  return new Map([[text, 1]]);
}

/** floor((floor(p / a) + c) / b) = floor((p + a * c) / (a * b)) for whole a, b above 0, and the same for ceil. */
function nestedDivision(
  rest: Polynomial,
  bottom: number,
  round: 'floor' | 'ceil',
): readonly [Polynomial, Polynomial] | undefined {
  const products = [...rest.keys()].filter((product) => product !== '');
  const inner = products.length === 1 ? calls.get(products[0]!) : undefined;
  if (inner?.name !== round || rest.get(products[0]!) !== 1) return undefined;
  const [top, divisor] = inner.parameters as [Polynomial, Polynomial];
  const by = asConstant(divisor);
  if (by === undefined || by <= 0) return undefined;
  return [combine(top, constant(by * (rest.get('') ?? 0)), 1), constant(by * bottom)];
}

function floorDivide(a: Polynomial, b: Polynomial, round: 'floor' | 'ceil'): Polynomial {
  const exact = divideExactly(a, b);
  if (exact) return exact;
  const top = asConstant(a);
  const bottom = asConstant(b);
  if (bottom === 0) throw new NpucError('IR020', { message: 'a dimension is divided by zero' });
  if (top !== undefined && bottom !== undefined)
    return constant(round === 'floor' ? Math.floor(top / bottom) : Math.ceil(top / bottom));
  if (bottom !== undefined && bottom > 0) {
    // Whole multiples leave the call: floor((2 * n + 3) / 2) = n + 1 + floor(1 / 2).
    const whole = new Map<string, number>();
    const rest = new Map<string, number>();
    for (const [product, factor] of a) {
      const quotient = Math.floor(factor / bottom);
      if (product !== '' && factor % bottom !== 0) rest.set(product, factor);
      else {
        if (quotient !== 0) whole.set(product, quotient);
        if (factor - quotient * bottom !== 0) rest.set(product, factor - quotient * bottom);
      }
    }
    const left = asConstant(rest);
    if (left !== undefined)
      return combine(whole, constant(round === 'floor' ? Math.floor(left / bottom) : Math.ceil(left / bottom)), 1);
    const flat = nestedDivision(rest, bottom, round);
    return combine(whole, flat ? floorDivide(...flat, round) : call(round, [rest, b]), 1);
  }
  return call(round, [a, b]);
}

/** Whether a polynomial cannot be negative: names stand for lengths, and no term is subtracted. */
function isNonNegative(polynomial: Polynomial): boolean {
  return [...polynomial].every(
    ([product, factor]) => factor >= 0 && factorsOf(product).every((name) => isNonNegativeCall(calls.get(name))),
  );
}

function isNonNegativeCall(inner: Call | undefined): boolean {
  if (!inner || inner.name === 'mod') return true;
  return inner.name === 'max' ? inner.parameters.some(isNonNegative) : inner.parameters.every(isNonNegative);
}

function extreme(name: 'max' | 'min', a: Polynomial, b: Polynomial): Polynomial {
  const difference = asConstant(combine(a, b, -1));
  if (difference !== undefined) return difference >= 0 === (name === 'max') ? a : b;
  // Names stand for lengths: what is more by a sum of them is larger.
  if (isNonNegative(combine(a, b, -1))) return name === 'max' ? a : b;
  if (isNonNegative(combine(b, a, -1))) return name === 'max' ? b : a;
  const ordered = [a, b].sort((x, y) => (String(print(x)) < String(print(y)) ? -1 : 1));
  return call(name, ordered);
}

function modulo(a: Polynomial, b: Polynomial): Polynomial {
  const top = asConstant(a);
  const bottom = asConstant(b);
  if (top !== undefined && bottom) return constant(((top % bottom) + bottom) % bottom);
  return divideExactly(a, b) ? constant(0) : call('mod', [a, b]);
}

/** The text of a polynomial: positive terms first, names in alphabetical order, the constant last. */
function print(polynomial: Polynomial): Dim {
  const value = asConstant(polynomial);
  if (value !== undefined) return value;
  const terms = [...polynomial].sort(([a, x], [b, y]) => {
    if ((a === '') !== (b === '')) return a === '' ? 1 : -1;
    if (x > 0 !== y > 0) return x > 0 ? -1 : 1;
    return a < b ? -1 : 1;
  });
  let text = '';
  for (const [product, factor] of terms) {
    const names = product === '' ? '' : product.split(FACTOR_SEPARATOR).join(' * ');
    const magnitude = Math.abs(factor);
    const term = names === '' ? `${magnitude}` : magnitude === 1 ? names : `${magnitude} * ${names}`;
    if (text === '') text = factor < 0 ? `-${term}` : term;
    else text += factor < 0 ? ` - ${term}` : ` + ${term}`;
  }
  parsed.set(text, polynomial);
  return text;
}

type Parse = (text: string) => MathNode;
let parseWithMathjs: Parse | undefined;

function loadMathjs(): Parse {
  parseWithMathjs ??= (createRequire(import.meta.url)('mathjs/number') as { parse: Parse }).parse;
  return parseWithMathjs;
}

/** The parts of mathjs' nodes that dimension arithmetic meets. */
interface Tree {
  readonly type: string;
  readonly value?: unknown;
  readonly name?: string;
  readonly op?: string;
  /** A product written without a sign, as in `batch size`: a name, not arithmetic. */
  readonly implicit?: boolean;
  readonly args?: readonly Tree[];
  readonly content?: Tree;
  readonly fn?: { readonly name?: string };
}

/** A polynomial from mathjs' tree; undefined for syntax that is no dimension arithmetic. */
function fromTree(tree: Tree): Polynomial | undefined {
  if (tree.type === 'ParenthesisNode') return fromTree(tree.content!);
  if (tree.type === 'SymbolNode') return new Map([[tree.name!, 1]]);
  if (tree.type === 'ConstantNode') return Number.isInteger(tree.value) ? constant(tree.value as number) : undefined;
  const round = tree.fn?.name;
  if (tree.type === 'FunctionNode' && (round === 'floor' || round === 'ceil')) return fromRounding(round, tree.args!);
  const parameters = (tree.args ?? []).map(fromTree);
  if (tree.implicit || parameters.includes(undefined)) return undefined;
  const [a, b] = parameters as Polynomial[];
  if (tree.type === 'OperatorNode') {
    if (tree.op === '+') return b ? combine(a!, b, 1) : a;
    if (tree.op === '-') return b ? combine(a!, b, -1) : combine(new Map(), a!, -1);
    if (tree.op === '*') return multiply(a!, b!);
    if (tree.op === '/') return divideExactly(a!, b!);
    if (tree.op === '%') return modulo(a!, b!);
    return undefined;
  }
  if (tree.type !== 'FunctionNode') return undefined;
  const name = tree.fn?.name;
  if ((name === 'max' || name === 'min') && parameters.length > 0)
    return (parameters as Polynomial[]).reduce((x, y) => extreme(name, x, y));
  return name === 'mod' && b ? modulo(a!, b) : undefined;
}

/** floor(p / q): the division belongs to the call, as p / q alone need not be whole. */
function fromRounding(round: 'floor' | 'ceil', args: readonly Tree[]): Polynomial | undefined {
  let inner = args[0]!;
  while (inner.type === 'ParenthesisNode') inner = inner.content!;
  if (inner.type !== 'OperatorNode' || inner.op !== '/') return fromTree(inner);
  const [a, b] = inner.args!.map(fromTree);
  return a && b ? floorDivide(a, b, round) : undefined;
}

/** The normal form of a dimension. Text in a foreign syntax is one opaque name, kept as it is. */
function polynomialOf(dim: Dim): Polynomial {
  if (typeof dim === 'number') return constant(dim);
  const known = parsed.get(dim);
  if (known) return known;
  let polynomial: Polynomial | undefined;
  if (/^-?\d+$/.test(dim)) polynomial = constant(Number(dim));
  else if (!NAME.test(dim) && /[-+*/%(]/.test(dim)) {
    try {
      const dotted: string[] = [];
      const text = dim.replace(DOTTED, (name) => `dotted_name_${dotted.push(name) - 1}`);
      polynomial = fromTree(loadMathjs()(text) as unknown as Tree);
      if (polynomial && dotted.length > 0)
        polynomial = bindPolynomial(
          polynomial,
          Object.fromEntries(dotted.map((name, index) => [`dotted_name_${index}`, name])),
        );
    } catch {
      // A dimension's name in ONNX is any text: `batch.1` and `?` are names, not mistakes.
    }
  }
  polynomial ??= new Map([[dim, 1]]);
  parsed.set(dim, polynomial);
  return polynomial;
}

/** A dimension from text: an integer, or an expression in normal form; text in a foreign syntax stays one opaque name. */
export function parseDim(text: string): Dim {
  return print(polynomialOf(text.trim()));
}

/** The normal form of a dimension: `simplifyDim('past + 1 - past') === 1`. */
export function simplifyDim(dim: Dim): Dim {
  return typeof dim === 'number' ? dim : print(polynomialOf(dim));
}

export function addDims(a: Dim, b: Dim): Dim {
  return typeof a === 'number' && typeof b === 'number' ? a + b : print(combine(polynomialOf(a), polynomialOf(b), 1));
}

export function subtractDims(a: Dim, b: Dim): Dim {
  return typeof a === 'number' && typeof b === 'number' ? a - b : print(combine(polynomialOf(a), polynomialOf(b), -1));
}

export function mulDims(a: Dim, b: Dim): Dim {
  // Adding 0 turns the -0 of 0 * -1 into 0.
  if (typeof a === 'number' && typeof b === 'number') return a * b + 0;
  return print(multiply(polynomialOf(a), polynomialOf(b)));
}

/** a / b rounded down. @throws IR020 when b is 0 */
export function divDims(a: Dim, b: Dim): Dim {
  return print(floorDivide(polynomialOf(a), polynomialOf(b), 'floor'));
}

/** a / b rounded up. @throws IR020 when b is 0 */
export function ceilDivDims(a: Dim, b: Dim): Dim {
  return print(floorDivide(polynomialOf(a), polynomialOf(b), 'ceil'));
}

/** a / b when b divides a whatever the names stand for, else undefined. */
export function divDimsExactly(a: Dim, b: Dim): Dim | undefined {
  const divisor = polynomialOf(b);
  if (asConstant(divisor) === 0) return undefined;
  const quotient = divideExactly(polynomialOf(a), divisor);
  return quotient && print(quotient);
}

export function modDims(a: Dim, b: Dim): Dim {
  return print(modulo(polynomialOf(a), polynomialOf(b)));
}

export function maxDims(a: Dim, b: Dim): Dim {
  return typeof a === 'number' && typeof b === 'number'
    ? Math.max(a, b)
    : print(extreme('max', polynomialOf(a), polynomialOf(b)));
}

export function minDims(a: Dim, b: Dim): Dim {
  return typeof a === 'number' && typeof b === 'number'
    ? Math.min(a, b)
    : print(extreme('min', polynomialOf(a), polynomialOf(b)));
}

/** Product of dimensions; 1 for none. */
export function productOfDims(dims: Shape): Dim {
  return dims.reduce<Dim>((product, dim) => mulDims(product, dim), 1);
}

/** Whether two dimensions are equal whatever their names stand for. */
export function sameDim(a: Dim, b: Dim): boolean {
  if (a === b) return true;
  if (typeof a === 'number' && typeof b === 'number') return false;
  return samePolynomial(polynomialOf(a), polynomialOf(b));
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, axis) => sameDim(dim, b[axis]!));
}

/** The names in a dimension, sorted. */
export function dimSymbols(dim: Dim): string[] {
  const names = new Set<string>();
  const visit = (polynomial: Polynomial): void => {
    for (const product of polynomial.keys()) {
      for (const factor of factorsOf(product)) {
        const inner = calls.get(factor);
        if (inner) inner.parameters.forEach(visit);
        else names.add(factor);
      }
    }
  };
  visit(polynomialOf(dim));
  return [...names].sort();
}

/** Puts integers or expressions in the place of names; names without a binding stay. @throws IR020 on a division by zero */
export function bindDim(dim: Dim, bindings: Readonly<Record<string, Dim>>): Dim {
  if (typeof dim === 'number') return dim;
  return print(bindPolynomial(polynomialOf(dim), bindings));
}

export function bindShape(shape: Shape, bindings: Readonly<Record<string, Dim>>): Dim[] {
  return shape.map((dim) => bindDim(dim, bindings));
}

function bindPolynomial(polynomial: Polynomial, bindings: Readonly<Record<string, Dim>>): Polynomial {
  let sum = constant(0);
  for (const [product, factor] of polynomial) {
    let term = constant(factor);
    for (const name of factorsOf(product)) {
      const inner = calls.get(name);
      let value: Polynomial = new Map([[name, 1]]);
      if (inner) value = bindCall(inner, bindings);
      else if (Object.hasOwn(bindings, name)) value = polynomialOf(bindings[name]!);
      term = multiply(term, value);
    }
    sum = combine(sum, term, 1);
  }
  return sum;
}

function bindCall(inner: Call, bindings: Readonly<Record<string, Dim>>): Polynomial {
  const [a, b] = inner.parameters.map((parameter) => bindPolynomial(parameter, bindings)) as [Polynomial, Polynomial];
  if (inner.name === 'max' || inner.name === 'min') return extreme(inner.name, a, b);
  return inner.name === 'mod' ? modulo(a, b) : floorDivide(a, b, inner.name);
}
