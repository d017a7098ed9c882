/** Whether the visitor has asked for less motion. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
