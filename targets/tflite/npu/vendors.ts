import { NpucError } from '../../../compiler/errors.ts';
import { nearestWord } from '../../../compiler/nearest.ts';
import { listSocs, type Soc } from '../../socs.ts';
import type { PortForm } from '../lowering.ts';
import type { TfliteModel } from '../model.ts';
import { groupDepthwise } from './group-depthwise.ts';
import { inlineComposites } from './inline-composites.ts';
import { splitBlocks } from './split-blocks.ts';

/** Vendors whose LiteRT compiler plugins are in the toolchain. */
export const NPU_VENDORS = ['qualcomm', 'openvino', 'mediatek', 'samsung'] as const;
export type NpuVendor = (typeof NPU_VENDORS)[number];

/** A vendor's NPU to compile a TFLite file for. */
export interface NpuRequest {
  readonly vendor: NpuVendor;
  /** As the vendor's plugin spells it. */
  readonly soc: string;
}

/** What is known of a vendor's plugin; measured with LiteRT 2.3.0. */
export interface VendorFacts {
  /** The manufacturer as the plugin calls itself. */
  readonly manufacturer: string;
  /** Its folder in the toolchain. */
  readonly folder: string;
  /** SoCs that it takes. OpenVINO's and Samsung's take any name without a word, so the plugins are never asked. */
  readonly socs: readonly string[];
  /** The one that is taken where none is said. */
  readonly soc: string;
  /** Whether the file that it compiles has integer or float ports. */
  readonly ports: PortForm;
  /** What its compiler takes in another form only: the file that it is given is rewritten. */
  readonly rewrite?: (model: TfliteModel) => TfliteModel;
  /** The library of the vendor's own SDK that compiles, where nobody may download it. */
  readonly compiler?: string;
  /** Why the figures of its artifacts mean what they mean. */
  readonly about: string;
}

export const VENDOR_FACTS: Readonly<Record<NpuVendor, VendorFacts>> = {
  qualcomm: {
    manufacturer: 'Qualcomm',
    folder: 'qualcomm',
    // Compiled for each and read back; QCS6490 alone is an "Unexpected SoC model".
    socs: listSocs().flatMap(({ name }) => (name === 'QCS6490' ? [] : [name])),
    soc: 'SM8750',
    ports: 'quantized',
    rewrite: (model) => groupDepthwise(splitBlocks(model)),
    about: 'the byte code is an HTP context, which the simulator executes',
  },
  openvino: {
    manufacturer: 'IntelOpenVINO',
    folder: 'intel_openvino',
    // Lunar Lake (NPU4000) and Panther Lake (NPU5010).
    socs: ['LNL', 'PTL'],
    soc: 'LNL',
    // With integer ports its CPU device refuses an 8-bit model: "does not support i16 for use with oneDNN".
    ports: 'float',
    // It reads odml.rms_norm over integers as one over floats and fails in its type check.
    rewrite: (model) => inlineComposites(splitBlocks(model)),
    about: "the byte code is OpenVINO's model for its CPU device: Intel's NPU compiler is part of the NPU's driver",
  },
  mediatek: {
    manufacturer: 'MediaTek',
    folder: 'mediatek',
    socs: [
      ...['mt6853', 'mt6877', 'mt6878', 'mt6879', 'mt6886', 'mt6893', 'mt6895', 'mt6897', 'mt6983', 'mt6985', 'mt6989'],
      ...['mt6991', 'mt6993', 'mt8171', 'mt8188', 'mt8189'],
    ],
    soc: 'mt6989',
    ports: 'quantized',
    rewrite: splitBlocks,
    compiler: 'libneuron_adapter.so',
    about: "claims are those of the plugin's own list: MediaTek's compiler was not asked",
  },
  samsung: {
    manufacturer: 'Samsung',
    folder: 'samsung',
    socs: ['E9955', 'E9965'],
    soc: 'E9965',
    ports: 'quantized',
    rewrite: splitBlocks,
    compiler: 'libgraph_wrapper.so',
    about: "claims are those of the plugin's own list: Samsung's compiler was not asked",
  },
};

/**
 * Reads `qualcomm`, `openvino:PTL` or `mediatek:mt6991`.
 * @param soc the SoC that the whole compile is for, which is Qualcomm's
 * @throws CL001 for a vendor that is not known, TG001 for a SoC that its plugin does not take
 */
export function parseNpu(text: string, soc: Soc): NpuRequest {
  const [name = '', own] = text.split(':');
  const vendor = NPU_VENDORS.find((each) => each === name.toLowerCase());
  if (!vendor) {
    const near = nearestWord(name, NPU_VENDORS);
    throw new NpucError('CL001', {
      message: `there is no NPU plugin of ${name}`,
      hint: near ? `did you mean ${near}?` : `there are ${NPU_VENDORS.join(', ')}`,
    });
  }
  const { socs, soc: usual } = VENDOR_FACTS[vendor];
  const asked = own ?? (vendor === 'qualcomm' ? soc.name : usual);
  const found = socs.find((each) => each.toLowerCase() === asked.toLowerCase());
  if (found) return { vendor, soc: found };
  throw new NpucError('TG001', {
    message: `LiteRT's plugin of ${vendor} does not compile for ${asked}`,
    hint: `it compiles for ${socs.join(', ')}`,
  });
}
