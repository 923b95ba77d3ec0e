import { describe, expect, it } from 'vitest';
import type { Module, Value } from '../../../compiler/ir/graph.ts';
import { parseModule, printType } from '../../../compiler/ir/text.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';

function inferred(body: string, opset = 21): Module {
  const module = parseModule(`npuir 1\nopset ${opset}\n\ngraph @main\n${body}`);
  inferShapes(module);
  return module;
}

function typeOf(module: Module, name: string): string {
  const graph = module.graph();
  const value: Value | undefined = graph.find(name);
  if (!value) throw new Error(`no value ${name}`);
  const { type } = value;
  return type?.kind === 'tensor' && type.shape ? `${type.dtype}[${type.shape.join(', ')}]` : printType(type);
}

describe('symbolic shapes', () => {
  it('carries names through layers', () => {
    const module = inferred(`
      in %x : f32[batch, tokens, 64]
      in %past : f32[batch, 4, past, 16]
      %w : f32[64, 192] = const rand(1, normal 0.02)
      %h = MatMul(%x, %w)
      %q, %k, %v = Split(%h) {axis -1}
      %shape : i64[4] = const [0, 0, 4, 16]
      %k4 = Reshape(%k, %shape)
      %kt = Transpose(%k4) {perm [0, 2, 1, 3]}
      %all = Concat(%past, %kt) {axis 2}
      %scores = Transpose(%all) {perm [0, 1, 3, 2]}
      out %scores`);
    expect(typeOf(module, 'h')).toBe('f32[batch, tokens, 192]');
    expect(typeOf(module, 'v')).toBe('f32[batch, tokens, 64]');
    expect(typeOf(module, 'all')).toBe('f32[batch, 4, past + tokens, 16]');
    expect(typeOf(module, 'scores')).toBe('f32[batch, 4, 16, past + tokens]');
  });

  it('says convolutions and pooling as expressions', () => {
    const module = inferred(`
      in %x : f32[n, 3, h, w]
      %k : f32[8, 3, 3, 3] = const rand(1, normal 0.1)
      %a = Conv(%x, %k) {strides [2, 2], pads [1, 1, 1, 1]}
      %b = Conv(%x, %k) {auto_pad "SAME_UPPER", strides [2, 2]}
      %c = MaxPool(%a) {kernel_shape [2, 2], strides [2, 2]}
      out %c`);
    expect(typeOf(module, 'a')).toBe('f32[n, 8, floor((h + 1) / 2), floor((w + 1) / 2)]');
    expect(typeOf(module, 'b')).toBe('f32[n, 8, ceil(h / 2), ceil(w / 2)]');
    expect(typeOf(module, 'c')).toBe('f32[n, 8, floor((h + 1) / 4), floor((w + 1) / 4)]');
  });

  it('broadcasts names that may be 1', () => {
    const module = inferred(`
      in %x : f32[a, 1, 5]
      in %y : f32[b, c, 1]
      %z = Add(%x, %y)
      out %z`);
    expect(typeOf(module, 'z')).toBe('f32[max(a, b), c, 5]');
  });
});

describe('shape arithmetic', () => {
  it('follows Shape, Gather, Concat and Reshape', () => {
    const module = inferred(`
      in %x : f32[batch, tokens, 64]
      %s = Shape(%x)
      %zero : i64[] = const 0
      %one : i64[] = const 1
      %b = Gather(%s, %zero)
      %t = Gather(%s, %one)
      %axes : i64[1] = const [0]
      %b1 = Unsqueeze(%b, %axes)
      %t1 = Unsqueeze(%t, %axes)
      %rest : i64[2] = const [-1, 16]
      %target = Concat(%b1, %t1, %rest) {axis 0}
      %y = Reshape(%x, %target)
      %flat : i64[2] = const [-1, 64]
      %z = Reshape(%x, %flat)
      out %y
      out %z`);
    expect(typeOf(module, 'y')).toBe('f32[batch, tokens, 4, 16]');
    expect(typeOf(module, 'z')).toBe('f32[batch * tokens, 64]');
  });

  it('knows the length of a Range over past and tokens', () => {
    const module = inferred(`
      in %ids : i64[1, tokens]
      in %k : f32[1, 4, past, 16]
      %s0 = Shape(%ids) {start 1, end 2}
      %s1 = Shape(%k) {start 2, end 3}
      %scalar : i64[0] = const []
      %t = Reshape(%s0, %scalar)
      %p = Reshape(%s1, %scalar)
      %end = Add(%t, %p)
      %step : i64[] = const 1
      %positions = Range(%p, %end, %step)
      out %positions`);
    expect(typeOf(module, 'positions')).toBe('i64[tokens]');
  });

  it('sees through the Where that guards an Expand', () => {
    const module = inferred(`
      in %x : f32[1, 1, tokens]
      in %y : f32[batch, tokens]
      %b = Shape(%y) {start 0, end 1}
      %t = Shape(%y) {start 1, end 2}
      %one : i64[1] = const [1]
      %wanted = Concat(%b, %one, %t) {axis 0}
      %minus : i64[] = const -1
      %three : i64[1] = const [3]
      %ones = ConstantOfShape(%three) {value tensor i64[1] [1]}
      %guard = Equal(%wanted, %minus)
      %target = Where(%guard, %ones, %wanted)
      %z = Expand(%x, %target)
      out %z`);
    expect(typeOf(module, 'z')).toBe('f32[batch, 1, tokens]');
  });

  it('computes small constants on the way', () => {
    const module = inferred(`
      in %x : f32[1, 2, 5, 7]
      %factor : f32[4] = const [1.0, 1.0, 2.0, 3.0]
      %half : f32[] = const 0.5
      %scales = Mul(%factor, %half)
      %two : f32[] = const 2.0
      %again = Mul(%scales, %two)
      %y = Resize(%x, _, %again) {mode "nearest"}
      out %y`);
    expect(typeOf(module, 'y')).toBe('f32[1, 2, 10, 21]');
  });

  it('counts what a constant NonZero finds', () => {
    const module = inferred(`
      in %x : f32[5, 7]
      %mask : f32[5] = const [1.0, 0.0, 1.0, 0.0, 1.0]
      %places = NonZero(%mask)
      %rows = Transpose(%places)
      %y = GatherND(%x, %rows)
      out %y`);
    expect(typeOf(module, 'y')).toBe('f32[3, 7]');
  });

  it('slices symbolic dimensions', () => {
    const module = inferred(`
      in %x : f32[n, 16]
      %start : i64[1] = const [1]
      %end : i64[1] = const [9223372036854775807]
      %minus : i64[1] = const [-1]
      %axes : i64[1] = const [0]
      %steps : i64[1] = const [2]
      %zero : i64[1] = const [0]
      %tail = Slice(%x, %start, %end, %axes)
      %head = Slice(%x, %zero, %minus, %axes)
      %odd = Slice(%x, %zero, %end, %axes, %steps)
      out %tail
      out %head
      out %odd`);
    // A length may be 0, where a slice from 1 on has no element rather than -1.
    expect(typeOf(module, 'tail')).toBe('f32[max(0, n - 1), 16]');
    expect(typeOf(module, 'head')).toBe('f32[max(0, n - 1), 16]');
    expect(typeOf(module, 'odd')).toBe('f32[ceil(n / 2), 16]');
  });
});

describe('subgraphs', () => {
  it('joins the branches of an If', () => {
    const module = inferred(`
      in %flag : bool[]
      in %x : f32[n, 4]
      in %y : f32[m, 4]
      %z = If(%flag) {then_branch graph @yes
          %a = Neg(%x)
          out %a
        end, else_branch graph @no
          %b = Neg(%y)
          out %b
        end}
      out %z`);
    expect(typeOf(module, 'z')).toBe('f32[unknown_z_0, 4]');
  });

  it('takes the branch of a known condition, though the other one does not fit', () => {
    const module = inferred(`
      in %x : f32[3, 4]
      %s = Shape(%x) {start 0, end 1}
      %one : i64[1] = const [1]
      %flag = Equal(%s, %one)
      %z = If(%flag) {then_branch graph @yes
          %axes : i64[1] = const [0]
          %a = Squeeze(%x, %axes)
          out %a
        end, else_branch graph @no
          %b = Identity(%x)
          out %b
        end}
      out %z`);
    expect(typeOf(module, 'z')).toBe('f32[3, 4]');
  });

  it('forgets what a loop changes from round to round', () => {
    const module = inferred(`
      in %trips : i64[]
      in %x : f32[2, n]
      %go : bool[] = const true
      %last, %rows = Loop(%trips, %go, %x) {body graph @body
          in %i : i64[]
          in %c : bool[]
          in %state
          %grown = Concat(%state, %x) {axis 1}
          %row = ReduceSum(%x) {keepdims 0}
          out %c
          out %grown
          out %row
        end}
      out %last
      out %rows`);
    expect(typeOf(module, 'last')).toBe('f32[2, unknown_last_1]');
    expect(typeOf(module, 'rows')).toBe('f32[unknown_rows_0]');
  });

  it('gives a scan the length of its inputs', () => {
    const module = inferred(`
      in %x : f32[time, 4]
      %zero : f32[4] = const fill 0.0
      %sum, %all = Scan(%zero, %x) {num_scan_inputs 1, body graph @body
          in %s : f32[4]
          in %row : f32[4]
          %next = Add(%s, %row)
          out %next
          out %next
        end}
      out %all`);
    expect(typeOf(module, 'all')).toBe('f32[time, 4]');
  });
});

describe('declared types', () => {
  it('stay where nothing can be inferred', () => {
    const module = inferred(`
      in %x : f32[n]
      %y : f32[n, 3] = custom::Thing(%x)
      %z = Neg(%y)
      out %z`);
    expect(typeOf(module, 'z')).toBe('f32[n, 3]');
  });

  it('give way to what is inferred', () => {
    const module = inferred(`
      in %x : f32[2, 3]
      %y : f32[a, b] = Neg(%x)
      out %y`);
    expect(typeOf(module, 'y')).toBe('f32[2, 3]');
  });
});

describe('bad graphs', () => {
  it.each([
    ['IR020', 'in %x : f32[2, 3]\n in %y : f32[4, 5]\n %z = MatMul(%x, %y)\n out %z'],
    ['IR020', 'in %x : f32[2, 3]\n in %y : f32[4, 3]\n %z = Add(%x, %y)\n out %z'],
    ['IR022', 'in %x : f32[2, 3]\n %z = Softmax(%x) {axis 1}\n %w = Concat(%x, %z) {axis 5}\n out %w'],
    ['IR022', 'in %x : f32[2, 3]\n %z = Transpose(%x) {perm [0, 1, 2]}\n out %z'],
    ['IR020', 'in %x : f32[2, 3]\n in %y : f32[2, 4]\n %z = Concat(%x, %y) {axis 0}\n out %z'],
    ['IR022', 'in %x : f32[2, 3]\n %z = Cast(%x) {to 99}\n out %z'],
    ['IR020', 'in %x : f32[1, 4, 5, 5]\n in %w : f32[8, 3, 3, 3]\n %z = Conv(%x, %w)\n out %z'],
  ])('%s', (code, body) => {
    expect(() => inferred(body)).toThrowError(expect.objectContaining({ code }));
  });
});
